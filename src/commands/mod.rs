//! The command line: what may be typed, and which file does it.
//!
//! Called by `main`. Every setting is a global flag, made from
//! [`SETTINGS`], so that the list stays in one place. One sub-command a file;
//! to add one: its file, a variant of [`Command`], a line in [`Invocation::run`].

mod advice;
mod bench;
mod bench_modes;
mod client;
mod doctor;
mod exec;
mod golden;
mod lease;
mod list;
mod local;
mod logs;
mod man;
mod nodes;
mod openapi;
mod paint;
mod pool;
mod progress;
mod promote;
mod reap;
mod removal;
mod saved;
mod serve;
mod snapshot;
mod token;
mod webhook;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use self::advice::next_step;
pub use self::paint::error as print_error;
use crate::config::{self, Config, ConfigError, ContainerMode, SETTINGS, Values};

/// The program's name, in usage texts and completions.
const NAME: &str = "demo-multiplexer";

/// A whole demo shop per visitor, restored from a snapshot in a blink.
#[derive(Debug, Parser)]
#[command(name = NAME, version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What may be done.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: pool, API and proxy
    Serve(serve::Serve),
    /// Get an instance (--golden says of what)
    Acquire(lease::Acquire),
    /// End an instance
    Release(lease::Release),
    /// List all instances
    Ls(list::Ls),
    /// Give an instance more time
    Extend(lease::Extend),
    /// Make an instance anew: as the golden is, at the same address
    Reset(lease::Change),
    /// Have an instance give its memory back until somebody asks for it
    Hibernate(lease::Change),
    /// Wake an instance that sleeps
    Wake(lease::Change),
    /// Keep an instance as it is now, to be opened when it is gone
    Save(saved::Save),
    /// List, open and remove shops that were kept
    Saved(saved::Saved),
    /// Change what the pool keeps ready, or drain it
    Pool(pool::Pool),
    /// List the hosts that share the store
    Nodes(nodes::Nodes),
    /// Build goldens
    Golden(golden::Golden),
    /// Take and look after snapshots
    Snapshot(snapshot::Snapshot),
    /// Take down what is over while no daemon runs
    Reap(reap::Reap),
    /// Show an instance's log files
    Logs(logs::Logs),
    /// Run a command in an instance
    Exec(exec::Exec),
    /// Measure every way to get a shop, side by side
    Bench(bench::Bench),
    /// Say what this host lacks and what to do about it, or what is left on it
    Doctor(doctor::Doctor),
    /// Print the API as an OpenAPI document
    #[command(name = "openapi")]
    OpenApi(openapi::OpenApi),
    /// Make tokens for the API
    Token(token::Token),
    /// Try the addresses that are told of leases
    Webhook(webhook::Webhook),
    /// Print a shell's completion script
    Completions(Completions),
    /// Write the manual pages
    Man(man::Man),
}

impl Command {
    /// The command's name, if snapshots are all that it is about.
    const fn about_snapshots(&self) -> Option<&'static str> {
        match self {
            Self::Snapshot(_) => Some("snapshot"),
            Self::Bench(_) => Some("bench"),
            _ => None,
        }
    }
}

/// `completions SHELL`
#[derive(Debug, clap::Args)]
struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What every command is given.
#[derive(Debug)]
pub struct Context {
    /// The settings, checked.
    pub config: Config,
    /// The settings' raw values, for those that [`Config`] does not hold.
    pub values: Values,
    /// Only those given as flags.
    pub flags: Values,
    /// How answers are printed.
    pub output: Output,
}

impl Context {
    /// The golden a command is about: the one named, or GOLDEN's first.
    #[must_use]
    pub fn golden<'a>(&'a self, named: Option<&'a str>) -> &'a str {
        named.or_else(|| self.config.goldens.first().map(String::as_str)).unwrap_or_default()
    }

    /// A setting's raw value.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.values.get(name).map_or("", |value| value.trim())
    }
}

/// One checked command line.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    /// The settings given as flags.
    flags: Values,
    output: Output,
}

impl Invocation {
    /// Reads a command line.
    ///
    /// # Errors
    /// clap's own, which may also be a request for help.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = command_line().try_get_matches_from(args)?;
        let cli = Cli::from_arg_matches(&matches)?;
        let output = if flag_set(&matches, "json") { Output::Json } else { Output::Text };
        Ok(Self { command: cli.command, flags: setting_flags(&matches), output })
    }

    /// Collects and checks the settings: those of the files and the environment
    /// with the flags over them.
    ///
    /// # Errors
    /// [`ConfigError`] with all that is wrong.
    pub fn context(&self, dir: &Path) -> Result<Context, ConfigError> {
        let values = config::collect(dir, self.flags.clone())?;
        let config = Config::check(&values)?;
        if config.container_mode == ContainerMode::Docker
            && let Some(command) = self.command.about_snapshots()
        {
            return Err(ConfigError {
                problems: vec![format!(
                    "CONTAINER_MODE=docker: there is no `{command}`, since Docker cannot restore snapshots; \
                     use CONTAINER_MODE=podman"
                )],
            });
        }
        Ok(Context { config, values, flags: self.flags.clone(), output: self.output })
    }

    /// Whether it is the daemon.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(self.command, Command::Serve(_))
    }

    /// What is logged: what LOG_LEVEL says where it is set. What somebody types
    /// answers by itself, so there only what is wrong.
    #[must_use]
    pub fn log_level<'a>(&self, context: &'a Context) -> &'a str {
        let level = context.value("LOG_LEVEL");
        let is_service = matches!(self.command, Command::Serve(_) | Command::Reap(_));
        let default =
            SETTINGS.iter().find(|setting| setting.name == "LOG_LEVEL").map(|setting| setting.default);
        if is_service || Some(level) != default { level } else { "warn" }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What the command met, for `main` to print.
    pub async fn run(self, context: Context) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(serve) => serve.run(context).await?,
            Command::Acquire(acquire) => acquire.run(&context).await?,
            Command::Release(release) => release.run(&context).await?,
            Command::Ls(ls) => ls.run(&context).await?,
            Command::Extend(extend) => extend.run(&context).await?,
            Command::Reset(change) => change.run("reset", &context).await?,
            Command::Hibernate(change) => change.run("hibernate", &context).await?,
            Command::Save(save) => save.run(&context).await?,
            Command::Saved(saved) => saved.run(&context).await?,
            Command::Wake(change) => change.run("wake", &context).await?,
            Command::Pool(pool) => pool.run(&context).await?,
            Command::Nodes(nodes) => nodes.run(&context).await?,
            Command::Golden(golden) => golden.run(&context).await?,
            Command::Snapshot(snapshot) => snapshot.run(&context).await?,
            Command::Reap(reap) => reap.run(&context).await?,
            Command::Logs(logs) => logs.run(&context).await?,
            Command::Exec(exec) => exec.run(&context).await?,
            Command::Bench(bench) => bench.run(&context).await?,
            Command::OpenApi(openapi) => openapi.run()?,
            Command::Token(token) => token.run(&context)?,
            Command::Completions(completions) => {
                clap_complete::generate(completions.shell, &mut command_line(), NAME, &mut std::io::stdout());
            }
            Command::Man(man) => man.run()?,
            Command::Webhook(webhook) => return webhook.run(&context).await,
            Command::Doctor(doctor) => return doctor.run(&context).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The commands with their own arguments.
fn commands() -> clap::Command {
    Cli::command().arg(
        Arg::new("json")
            .long("json")
            .global(true)
            .action(ArgAction::SetTrue)
            .help("Answer in JSON instead of a table"),
    )
}

/// The whole command line, settings included.
fn command_line() -> clap::Command {
    commands().args(settings())
}

/// A flag for each setting.
fn settings() -> impl Iterator<Item = Arg> {
    SETTINGS.iter().map(|setting| {
        // clap wants names for ever; there are some dozens of them, once a process.
        let long: &'static str = setting.name.to_ascii_lowercase().replace('_', "-").leak();
        let default = match setting.default {
            "" => String::new(),
            default => format!(" [default: {default}]"),
        };
        let help = format!("{} [{}]{default}", setting.help, setting.name);
        Arg::new(setting.name)
            .long(long)
            .global(true)
            .value_name("VALUE")
            .allow_hyphen_values(true)
            .hide_short_help(true)
            .help_heading("Settings (each also in .env, the environment and CONFIG_FILE)")
            .help(help.clone())
            .long_help(help)
    })
}

/// The matches of the innermost sub-command, to which clap carries global flags
/// wherever they were typed.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| innermost(inner))
}

fn flag_set(matches: &ArgMatches, name: &str) -> bool {
    innermost(matches).get_flag(name)
}

fn setting_flags(matches: &ArgMatches) -> Values {
    let matches = innermost(matches);
    let given = |name| matches.get_one::<String>(name).cloned();
    SETTINGS.iter().filter_map(|setting| Some((setting.name.to_owned(), given(setting.name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Invocation, clap::Error> {
        Invocation::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_command_line_makes_sense() {
        command_line().debug_assert();
    }

    #[test]
    fn a_setting_is_a_flag_before_and_after_the_command() {
        for line in [
            "demo-multiplexer --pool-target-size 7 --json serve --ephemeral",
            "demo-multiplexer serve --pool-target-size=7 --ephemeral --json",
        ] {
            let invocation = parse(line).unwrap();
            assert_eq!(invocation.flags.get("POOL_TARGET_SIZE").map(String::as_str), Some("7"), "{line}");
            assert_eq!((invocation.flags.len(), invocation.output), (1, Output::Json), "{line}");
        }
    }

    #[test]
    fn what_nobody_knows_is_refused() {
        assert!(parse("demo-multiplexer sevre").is_err());
        assert!(parse("demo-multiplexer serve --pool-size 3").is_err());
        assert!(parse("demo-multiplexer").is_err());
    }

    #[test]
    fn with_docker_snapshots_are_refused_and_the_rest_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let context = |line: &str| parse(line).unwrap().context(dir.path());
        for line in ["snapshot list", "snapshot create wordpress", "snapshot verify", "bench"] {
            let line = format!("demo-multiplexer {line} --container-mode docker");
            let error = context(&line).unwrap_err().to_string();
            assert!(error.contains("Docker cannot restore snapshots; use CONTAINER_MODE=podman"), "{error}");
        }
        for line in ["ls", "golden list", "serve", "doctor"] {
            context(&format!("demo-multiplexer {line} --container-mode docker")).unwrap();
        }
        context("demo-multiplexer snapshot list").unwrap();
    }

    #[test]
    fn acquire_takes_its_golden_from_the_flag_only() {
        let invocation = parse("demo-multiplexer acquire --golden wordpress --ttl 5m").unwrap();
        assert_eq!(invocation.flags.get("GOLDEN").map(String::as_str), Some("wordpress"));
    }
}
