//! `token create`: makes a token for the API.
//!
//! Asks nobody and writes nothing: the token goes to its holder, the entry to the
//! file or setting API_TOKENS of the daemon, which reads it at its next start.

use secrecy::ExposeSecret as _;
use serde_json::json;

use super::client::print_json;
use super::{Context, Output};
use crate::token::{Scope, Scopes, create};

/// `token`
#[derive(Debug, clap::Args)]
pub(super) struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

/// What may be done with tokens.
#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    /// Make a token and print it, this once, with its line for API_TOKENS
    Create(Create),
}

/// `token create NAME --scope SCOPE`
#[derive(Debug, clap::Args)]
struct Create {
    /// Whose it is: letters, digits, dots and dashes
    name: String,
    /// What it allows: acquire, operate or admin; more than one after a plus sign
    #[arg(long, value_name = "SCOPE[+SCOPE]")]
    scope: Scopes,
}

impl Token {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<()> {
        let TokenCommand::Create(Create { name, scope }) = self.command;
        let (token, entry) = create(&name, scope).map_err(anyhow::Error::msg)?;
        let token = token.expose_secret();
        if context.output == Output::Json {
            let scopes: Vec<&str> = Scope::ALL
                .into_iter()
                .filter(|scope| entry.scopes().has(*scope))
                .map(Scope::as_str)
                .collect();
            let answer =
                json!({ "name": name, "scopes": scopes, "token": token, "entry": entry.to_string() });
            return print_json(&answer);
        }
        println!("Token     {token}");
        println!("Line      {entry}");
        println!();
        println!(
            "The token is shown this once: give it to {name}. The line goes into the daemon's API_TOKENS"
        );
        println!("(a file with mode 0600, one a line); it counts from the daemon's next start.");
        Ok(())
    }
}
