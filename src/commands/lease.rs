//! `acquire`, `extend`, `reset`, `hibernate`, `wake`, `release`: what a client does with an instance.

use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Api, print_fields, print_json};
use super::{Context, Output};
use crate::id::InstanceId;

/// `acquire`
#[derive(Debug, clap::Args)]
pub(super) struct Acquire {
    /// For how long, such as 30m; without it DEFAULT_TTL
    #[arg(long, allow_hyphen_values = true)]
    ttl: Option<String>,
    /// The same key gets the same instance for as long as it lives
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

impl Acquire {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        // Only the flag: GOLDEN in the environment says what a daemon serves.
        let golden = context.flags.get("GOLDEN").cloned();
        let fields = [("golden", golden), ("ttl", self.ttl), ("idempotency_key", self.idempotency_key)];
        let body: Map<String, Value> =
            fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect();
        let api = Api::of(context)?;
        let answer = api.call(Method::POST, "/api/v1/demo/acquire", Some(Value::Object(body))).await?;
        match context.output {
            Output::Json => print_json(&answer)?,
            Output::Text => print_fields(
                &answer,
                &[
                    ("Shop", "url"),
                    ("Back office", "admin_url"),
                    ("Email", "admin_email"),
                    ("Password", "admin_password"),
                    ("One click", "admin_login_url"),
                    ("Id", "id"),
                    ("Golden", "golden"),
                    ("Until", "expires_at"),
                    ("From", "source"),
                    ("Took (ms)", "acquire_ms"),
                ],
            ),
        }
        Ok(())
    }
}

/// `extend ID TTL`
#[derive(Debug, clap::Args)]
pub(super) struct Extend {
    /// Which instance
    id: InstanceId,
    /// How much longer, such as 30m
    #[arg(allow_hyphen_values = true)]
    ttl: String,
}

impl Extend {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let path = format!("/api/v1/demo/{}/extend", self.id);
        let body = json!({ "ttl": self.ttl });
        let answer = Api::of(context)?.call(Method::POST, &path, Some(body)).await?;
        match context.output {
            Output::Json => print_json(&answer)?,
            Output::Text => print_fields(&answer, &[("Id", "id"), ("Until", "expires_at")]),
        }
        Ok(())
    }
}

/// `reset ID`, `hibernate ID`, `wake ID`: what takes an instance and answers it.
#[derive(Debug, clap::Args)]
pub(super) struct Change {
    /// Which instance
    id: InstanceId,
}

impl Change {
    pub(super) async fn run(self, what: &str, context: &Context) -> anyhow::Result<()> {
        let path = format!("/api/v1/demo/{}/{what}", self.id);
        let answer = Api::of(context)?.call(Method::POST, &path, None).await?;
        let fields = [("Shop", "url"), ("Id", "id"), ("State", "state"), ("Until", "expires_at")];
        match context.output {
            Output::Json => print_json(&answer)?,
            Output::Text => print_fields(&answer, &fields),
        }
        Ok(())
    }
}

/// `release ID`
#[derive(Debug, clap::Args)]
pub(super) struct Release {
    /// Which instance
    id: InstanceId,
}

impl Release {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        Api::of(context)?.call(Method::DELETE, &format!("/api/v1/demo/{}", self.id), None).await?;
        match context.output {
            Output::Json => print_json(&json!({ "id": self.id.as_str(), "released": true }))?,
            Output::Text => println!("{} released", self.id),
        }
        Ok(())
    }
}
