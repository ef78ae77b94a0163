//! The program: read the command line, start the log, run one command, print
//! what went wrong.

use std::process::ExitCode;

use demo_multiplexer::commands::Invocation;
use demo_multiplexer::telemetry;

/// `EX_USAGE` of sysexits.h: the command line or the settings are wrong, and
/// starting again will not help.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    // Fails only when there is one already.
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
    if let Err(error) = telemetry::start(context.value("LOG_LEVEL"), context.value("LOG_FORMAT")) {
        return usage(&error);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(invocation.run(context)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("error: {}", demo_multiplexer::error::Chain(error));
    ExitCode::from(USAGE)
}
