//! Judgement of a host in Docker mode: a Docker engine in place of Podman and
//! CRIU. Pure.

use super::facts::Facts;
use super::{Finding, Status, packages};
use crate::config::{Config, ContainerMode};
use crate::engine::docker::api::{API_LEAST, Version};

/// Findings that are about freezing and restoring alone.
const OF_RESTORING: &[&str] = &["overlayfs", "reflink", "nftables"];

/// Whether shops are booted by Docker.
pub(super) fn is_mode(config: &Config) -> bool {
    config.container_mode == ContainerMode::Docker
}

/// Whether a finding matters where nothing is restored.
pub(super) fn matters(finding: &Finding) -> bool {
    !OF_RESTORING.contains(&finding.name)
}

/// The engine itself; no finding when nobody asked.
pub(super) fn engine(facts: &Facts, config: &Config) -> Option<Finding> {
    let name = "docker";
    let fail =
        |seen: String, advice: String| Finding { name, status: Status::Fail, seen, advice: Some(advice) };
    let install = || facts.family.install(packages::DOCKER);
    Some(match facts.docker.as_ref()? {
        Err(why) => fail(
            why.clone(),
            format!(
                "install it ({}) and start it (systemctl enable --now docker), or set DOCKER_HOST; it is unix://{}",
                install(),
                config.docker_socket.display()
            ),
        ),
        Ok(Version { version, api_version }) if !is_new_enough(api_version) => fail(
            format!("Docker {version} speaks API {api_version}, older than {}.{}", API_LEAST.0, API_LEAST.1),
            install(),
        ),
        Ok(Version { version, api_version }) => Finding {
            name,
            status: Status::Ok,
            seen: format!("Docker {version}, API {api_version}"),
            advice: None,
        },
    })
}

fn is_new_enough(api: &str) -> bool {
    let parsed =
        api.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.is_some_and(|found: (u32, u32)| found >= API_LEAST)
}
