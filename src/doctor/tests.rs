//! Judgement of what a probe saw, without a host.

use super::doors::Doors;
use super::facts::{Answer, Bridge, Facts, Listen, Route, Runtime, StateDir, field, parse_routes};
use super::judge::judge;
use super::packages::Family;
use super::trial::without_harmless;
use super::*;
use crate::config::SETTINGS;
use crate::engine::docker::api::Version;

fn config() -> Config {
    let defaults = SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned()));
    Config::check(&defaults.collect()).unwrap()
}

/// A host on which nothing is to be said.
fn fit() -> Facts {
    Facts {
        family: Family::Debian,
        uid: 0,
        capabilities: u64::MAX,
        kernel: "6.12.48+deb13-amd64".into(),
        cgroup: Some(Ok(["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).into())),
        criu: Answer::Said("4.1.1".into()),
        criu_check: Answer::Said("Looks good.".into()),
        checkpoint: Some(Ok(())),
        criu_cache: Some(Ok(())),
        userfaultfd: Answer::Said("uffd-noncoop is supported".into()),
        podman: Answer::Said("podman version 5.4.2".into()),
        docker: None,
        runtime: Some(Ok(Runtime {
            name: "crun".into(),
            version: Answer::Said("crun version 1.21\n+SYSTEMD +CAP +CRIU +YAJL".into()),
            libcriu: true,
        })),
        state: Some(Ok(StateDir { kind: "XFS".into(), overlay: Ok(()), reflink: Ok(()), free: 40 << 30 })),
        memory: 16 << 30,
        files: Some(524_288),
        network: Some(Ok(())),
        bridge: Bridge::Absent,
        routes: vec![route("eth0", "0.0.0.0", 0), route("eth0", "192.168.1.0", 24)],
        nftables: Answer::Said(String::new()),
        database: None,
        nats: None,
        listen: Listen::Free,
        router: None,
        doors: Doors { tokens: Some(Ok(false)), keys: Some(Vec::new()), webhooks: None },
        way_out: None,
        tools_missing: Vec::new(),
        recipes_unread: Vec::new(),
    }
}

fn route(interface: &str, network: &str, prefix: u8) -> Route {
    Route { interface: interface.into(), network: network.parse().unwrap(), prefix }
}

/// The findings that are not ok, on a host that differs from a fit one.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = fit();
    change(&mut facts);
    let findings = judge(&facts, &config());
    for finding in &findings {
        assert_eq!(finding.status == Status::Ok, finding.advice.is_none(), "{finding:?}");
    }
    findings.into_iter().filter(|finding| finding.status != Status::Ok).collect()
}

/// The one finding that is not ok.
fn only(change: impl FnOnce(&mut Facts)) -> Finding {
    let mut findings = found(change);
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.remove(0)
}

fn runtime(change: impl FnOnce(&mut Runtime)) -> Finding {
    only(|facts| {
        let Some(Ok(runtime)) = &mut facts.runtime else { unreachable!("fit() has one") };
        change(runtime);
    })
}

fn state(change: impl FnOnce(&mut StateDir)) -> Finding {
    only(|facts| {
        let Some(Ok(state)) = &mut facts.state else { unreachable!("fit() has one") };
        change(state);
    })
}

#[test]
fn nothing_is_said_against_a_fit_host() {
    assert_eq!(found(|_| {}), []);
    let report = report(&judge(&fit(), &config()), Form::Text);
    assert!(
        report.possible
            && report.text.ends_with("\nThis host is fit: shops can be frozen and restored here.\n")
    );
}

#[test]
fn without_root_what_needs_it_is_left_out_and_only_root_is_blamed() {
    let finding = only(|facts| {
        facts.uid = 1000;
        facts.capabilities = 0;
        facts.criu_check = Answer::Failed("you need to be root".into());
        facts.userfaultfd = Answer::Failed("you need to be root".into());
        facts.nftables = Answer::Failed("Operation not permitted (you must be root)".into());
        (facts.cgroup, facts.checkpoint, facts.criu_cache) = (None, None, None);
        (facts.runtime, facts.state, facts.network) = (None, None, None);
    });
    assert_eq!((finding.name, finding.status), ("root", Status::Fail));
}

#[test]
fn sys_resource_is_judged_by_what_criu_can_do() {
    let without = !(1 << 24);
    assert_eq!(found(|facts| facts.capabilities = without), [], "the trial went well");
    let findings = found(|facts| {
        facts.capabilities = without;
        facts.checkpoint = Some(Err("Can't get rlimit 0: Operation not permitted".into()));
    });
    let names: Vec<_> = findings.iter().map(|finding| (finding.name, finding.status)).collect();
    assert_eq!(names, [("capabilities", Status::Fail), ("checkpoint", Status::Fail)]);
    assert!(findings[1].seen.contains("Can't get rlimit 0"), "{:?}", findings[1]);
}

#[test]
fn another_missing_capability_fails_whatever_the_trial_says() {
    let finding = only(|facts| facts.capabilities = !(1 << 21));
    assert_eq!((finding.status, finding.seen.as_str()), (Status::Fail, "missing: CAP_SYS_ADMIN"));
}

#[test]
fn old_programs_fail_with_the_distributions_package() {
    let finding = only(|facts| facts.criu = Answer::Said("3.17.1".into()));
    assert_eq!((finding.name, finding.status), ("criu", Status::Fail));
    assert_eq!(finding.seen, "CRIU 3.17.1 is older than 4.1");
    assert!(finding.advice.unwrap().starts_with("apt-get install criu libcriu2 (Debian 13"));

    let finding = only(|facts| {
        facts.family = Family::Fedora;
        facts.podman = Answer::Said("podman version 4.3.1".into());
    });
    assert_eq!((finding.name, finding.advice.as_deref()), ("podman", Some("dnf install podman")));

    assert_eq!(
        found(|facts| facts.criu = Answer::Said("10.0.0".into())),
        [],
        "numbers, not letters, are compared"
    );
    assert_eq!(only(|facts| facts.kernel = "5.10.0-28-amd64".into()).name, "kernel");
}

#[test]
fn a_missing_criu_is_one_finding_not_four() {
    let finding = only(|facts| {
        facts.criu = Answer::Missing;
        facts.criu_check = Answer::Missing;
        facts.userfaultfd = Answer::Missing;
        facts.checkpoint = None;
    });
    assert_eq!((finding.name, finding.status), ("criu", Status::Fail));
}

#[test]
fn crius_harmless_line_is_no_cause() {
    let said = "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                Error (criu/cr-check.c:1): the cause\n";
    assert_eq!(without_harmless(said), "Error (criu/cr-check.c:1): the cause");
    let finding = only(|facts| facts.criu_check = Answer::Failed(said.into()));
    assert!(finding.status == Status::Fail && !finding.seen.contains("RLIMIT_NOFILE"), "{finding:?}");
}

#[test]
fn the_runtime_must_be_a_crun_that_can_use_criu() {
    assert!(runtime(|runtime| runtime.name = "runc".into()).seen.contains("Podman uses runc"));
    let finding = runtime(|runtime| runtime.version = Answer::Said("crun version 1.21\n+CAP".into()));
    assert!(finding.seen.contains("built without CRIU"), "{finding:?}");
    let finding = runtime(|runtime| runtime.libcriu = false);
    assert_eq!((finding.status, finding.advice.as_deref()), (Status::Fail, Some("apt-get install libcriu2")));
}

#[test]
fn cgroups_must_be_unified_and_a_missing_controller_is_a_warning() {
    let finding = only(|facts| facts.cgroup = Some(Err("/sys/fs/cgroup is not cgroup v2".into())));
    assert_eq!((finding.name, finding.status), ("cgroup", Status::Fail));
    let finding = only(|facts| facts.cgroup = Some(Ok(vec!["cpu".into(), "memory".into()])));
    assert_eq!((finding.name, finding.status), ("controllers", Status::Warn));
    assert!(finding.seen.starts_with("missing: pids, io; on pids the daemon looks"), "{finding:?}");
    assert!(finding.seen.ends_with("; limits on io are not in force"), "{finding:?}");
}

#[test]
fn the_state_directory_is_judged_by_what_it_can_do() {
    let finding = state(|state| {
        state.kind = "ext4".into();
        state.reflink = Err("Operation not supported".into());
    });
    assert_eq!((finding.name, finding.status), ("reflink", Status::Warn));
    assert!(finding.advice.unwrap().contains("mkfs.xfs -m reflink=1 /var/lib/demo-multiplexer.img"));
    let finding = state(|state| state.overlay = Err("Invalid argument".into()));
    assert_eq!((finding.name, finding.status), ("overlayfs", Status::Fail));
    assert_eq!(state(|state| state.free = 5 << 30).status, Status::Warn);
    assert_eq!(state(|state| state.free = 1 << 30).status, Status::Fail);
    let finding = only(|facts| facts.state = Some(Err("/var/lib cannot be written".into())));
    assert_eq!((finding.name, finding.status), ("state-dir", Status::Fail));
}

#[test]
fn a_route_inside_the_bridges_network_fails_and_a_wider_one_warns() {
    let with = |other: Route| move |facts: &mut Facts| facts.routes.push(other);
    assert_eq!(only(with(route("docker0", "10.77.3.0", 24))).status, Status::Fail);
    assert_eq!(only(with(route("eth1", "10.77.0.0", 16))).status, Status::Fail);
    assert_eq!(only(with(route("tun0", "10.0.0.0", 8))).status, Status::Warn);
    assert_eq!(found(with(route("tun0", "10.78.0.0", 16))), []);
    assert_eq!(found(with(route("dmux0", "10.77.0.0", 16))), [], "the bridge's own");
    assert_eq!(only(|facts| facts.bridge = Bridge::Other).status, Status::Fail);
}

#[test]
fn a_port_with_a_daemon_behind_it_is_fine_and_any_other_use_fails() {
    assert_eq!(found(|facts| facts.listen = Listen::Daemon), []);
    assert_eq!(only(|facts| facts.listen = Listen::Taken).status, Status::Fail);
    let finding = only(|facts| facts.listen = Listen::Refused("Cannot assign requested address".into()));
    assert_eq!(finding.status, Status::Fail);
}

#[test]
fn too_few_open_files_for_the_connections_wanted_is_said_with_what_to_raise() {
    let finding = only(|facts| facts.files = Some(1024));
    assert_eq!((finding.name, finding.status), ("files", Status::Warn));
    assert!(finding.seen.contains("room for 384 connections; MAX_CONNECTIONS is 16384"), "{finding:?}");
    assert!(finding.advice.is_some_and(|advice| advice.contains("LimitNOFILE")));
    assert_eq!(found(|facts| facts.files = None), [], "no bound");
}

#[test]
fn what_only_a_build_or_speed_needs_is_a_warning() {
    let findings = found(|facts| {
        facts.memory = 2 << 30;
        facts.criu_cache = Some(Err("/run/criu.kdat cannot be written: Read-only file system".into()));
        facts.userfaultfd = Answer::Failed("uffd-noncoop is not supported".into());
        facts.nftables = Answer::Missing;
        facts.tools_missing = vec!["mmdebstrap", "unzip"];
        facts.recipes_unread = vec![("prestashop".into(), "no such folder".into())];
    });
    let names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
    assert_eq!(names, ["criu-cache", "userfaultfd", "memory", "nftables", "golden-tools", "recipes"]);
    assert!(findings.iter().all(|finding| finding.status == Status::Warn));
    assert_eq!(findings[4].advice.as_deref(), Some("apt-get install mmdebstrap unzip"));
    assert!(report(&findings, Form::Text).possible);
}

#[test]
fn in_docker_mode_docker_stands_in_place_of_podman_and_criu() {
    let mut values: crate::config::Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    values.insert("CONTAINER_MODE".into(), "docker".into());
    let config = Config::check(&values).unwrap();
    let with = |docker: Result<Version, String>| {
        let mut facts = fit();
        facts.docker = Some(docker);
        // None of this is of use there.
        facts.criu = Answer::Missing;
        facts.podman = Answer::Missing;
        facts.nftables = Answer::Missing;
        facts.capabilities &= !(1 << 24);
        let Some(Ok(state)) = &mut facts.state else { unreachable!("fit() has one") };
        state.reflink = Err("Operation not supported".into());
        report(&judge(&facts, &config), Form::Text)
    };
    let version = |api: &str| Version { version: "28.5.2".into(), api_version: api.into() };
    let fit = with(Ok(version("1.51")));
    assert!(fit.text.contains("Docker 28.5.2, API 1.51"), "{}", fit.text);
    assert!(fit.text.ends_with("This host is fit: shops can be booted here.\n"), "{}", fit.text);
    let old = with(Ok(version("1.9")));
    assert!(!old.possible && old.text.contains("older than 1.41"), "{}", old.text);
    let absent = with(Err("no Docker engine answers at /run/x".into()));
    assert!(!absent.possible && absent.text.contains("systemctl enable --now docker"), "{}", absent.text);
    assert!(absent.text.contains("unix:///var/run/docker.sock"), "{}", absent.text);
}

#[test]
fn a_report_says_what_was_seen_and_what_to_do() {
    let findings = found(|facts| {
        facts.checkpoint = Some(Err("line 1\nline 2".into()));
        facts.tools_missing = vec!["curl"];
    });
    let text = report(&findings, Form::Text).text;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "FAIL  checkpoint    CRIU cannot freeze and thaw a process of another user:");
    assert_eq!(lines[1], "                    line 1");
    assert!(lines[3].starts_with("                    -> mend what"), "{text}");
    assert_eq!(lines.last(), Some(&"Shops cannot be frozen and restored here: 1 to mend."));
}

#[test]
fn the_json_form_has_the_verdict_and_every_finding() {
    let written = report(&judge(&fit(), &config()), Form::Json);
    let json: serde_json::Value = serde_json::from_str(&written.text).unwrap();
    assert_eq!(json["possible"], true);
    assert_eq!(
        json["findings"][0],
        serde_json::json!({"name": "root", "status": "ok", "seen": "runs as root"})
    );
    let failed = report(&found(|facts| facts.podman = Answer::Missing), Form::Json);
    let json: serde_json::Value = serde_json::from_str(&failed.text).unwrap();
    assert!(!failed.possible && json["possible"] == false);
    assert_eq!(json["findings"][0]["advice"].as_str().unwrap().split(' ').nth(2), Some("podman"));
}

#[test]
fn distributions_are_known_by_their_own_name_or_by_what_they_are_like() {
    let family = |text: &str| Family::of(text);
    assert_eq!(family("PRETTY_NAME=\"Debian\"\nID=debian\n"), Family::Debian);
    assert_eq!(family("ID=ubuntu\nID_LIKE=debian\n"), Family::Ubuntu);
    assert_eq!(family("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), Family::Ubuntu);
    assert_eq!(family("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), Family::Fedora);
    assert_eq!(family("ID=arch\n"), Family::Other);
}

#[test]
fn the_kernels_tables_are_read() {
    let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                 eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                 dmux0\t00004D0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
    assert_eq!(parse_routes(table), [route("eth0", "0.0.0.0", 0), route("dmux0", "10.77.0.0", 16)]);
    assert_eq!(parse_routes("no table at all\nx\n"), []);
    assert_eq!(field("CapPrm:\t1\nCapEff:\t2\n", "CapEff"), Some("2"));
}

#[test]
fn a_nats_that_is_away_is_no_reason_not_to_start() {
    let away = only(|facts| facts.nats = Some(Err("JetStream is off".into())));
    assert_eq!((away.name, away.status), ("nats", Status::Warn));
    assert!(away.seen.contains("JetStream is off") && away.advice.unwrap().contains("NATS_URL"));
    assert!(found(|facts| facts.nats = Some(Ok(()))).is_empty());
}
