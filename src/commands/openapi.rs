//! `openapi`: the API as a document, without a daemon.

use crate::api;

/// `openapi`
#[derive(Debug, clap::Args)]
pub(super) struct OpenApi {}

impl OpenApi {
    /// It is JSON in any case, so `--json` changes nothing.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        println!("{}", api::document().to_pretty_json()?);
        Ok(())
    }
}
