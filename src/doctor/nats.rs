//! NATS, where jobs and events go over it: does it answer, and has it JetStream?

use super::Finding;
use super::facts::Facts;
use super::judge::{ok, warn};
use super::probe::DEADLINE;
use crate::config::Config;
use crate::error::Chain;
use crate::nats;

pub(super) async fn trial(config: &Config) -> Option<Result<(), String>> {
    let settings = config.nats.as_ref()?;
    let tried = tokio::time::timeout(DEADLINE, nats::trial(settings, &config.node)).await;
    Some(match tried {
        Ok(tried) => tried.map_err(|error| Chain(&error).to_string()),
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    })
}

pub(super) fn judge(facts: &Facts) -> Option<Finding> {
    Some(match facts.nats.as_ref()? {
        Ok(()) => ok("nats", "NATS answers, with JetStream"),
        Err(why) => warn(
            "nats",
            format!("NATS cannot be used: {why}"),
            "start nats-server with -js, or correct NATS_URL; until then jobs stay in the process and nobody hears of events",
        ),
    })
}
