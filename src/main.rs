//! The program: read the command line, start the log, run one command, print
//! what went wrong.

use std::process::ExitCode;

use demo_multiplexer::commands::{Invocation, next_step, print_error};
use demo_multiplexer::telemetry;

/// `EX_USAGE` of sysexits.h: the command line or the settings are wrong, and
/// starting again will not help.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    // The one provider; only a second call in this process could fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let invocation = match Invocation::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(help_or_error) => {
            let _ = help_or_error.print();
            return if help_or_error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let context = match invocation.context(std::path::Path::new(".")) {
        Ok(context) => context,
        Err(error) => return usage(&error),
    };
    let options = telemetry::Options {
        level: invocation.log_level(&context),
        format: context.value("LOG_FORMAT"),
        // A command is over before its trace would be sent.
        otlp_url: context.config.otlp_url.as_deref().filter(|_| invocation.serves()),
    };
    let telemetry = match telemetry::start(options) {
        Ok(telemetry) => telemetry,
        Err(error) => return usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(format_args!("cannot start the runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ran = runtime.block_on(invocation.run(context));
    telemetry.stop();
    match ran {
        Ok(code) => code,
        Err(error) => {
            print_error(format_args!("{error:#}"));
            if let Some(step) = next_step(&error) {
                eprintln!("{step}");
            }
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    print_error(demo_multiplexer::error::Chain(error));
    ExitCode::from(USAGE)
}
