//! The one trial that tells most: a process of another user is frozen by CRIU
//! and thawed again.
//!
//! `criu check` says "Looks good" on a machine without CAP_SYS_RESOURCE, where
//! no shop can be frozen: reading other users' limits is what fails there.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::engine::criu::log;
use crate::host::process;

/// `nobody`: any user that is not root will do, it need not exist.
const OTHER_USER: u32 = 65534;

/// Freezing and thawing a sleeping process takes 60 ms.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long the process would sleep if it were forgotten.
const SLEEP_SECONDS: &str = "60";

/// Printed where no limit can be raised, to no harm.
const HARMLESS: &str = "Can't setup RLIMIT_NOFILE for self";

/// Lines of CRIU's that are no cause of anything are taken out.
pub(super) fn without_harmless(text: &str) -> String {
    let lines: Vec<&str> =
        text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.contains(HARMLESS)).collect();
    lines.join("\n")
}

/// Freezes and thaws; the error is what CRIU said.
pub(super) async fn checkpoint() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    // A session of its own, as every container has; its streams lead nowhere.
    let mut sleeper = Command::new("setsid")
        .args(["sleep", SLEEP_SECONDS])
        .uid(OTHER_USER)
        .gid(OTHER_USER)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start setsid: {error}"))?;
    let pid = sleeper.id().ok_or("the process to freeze ended at once")?;
    asleep(pid).await?;
    criu(dir.path(), "dump", &["--tree", &pid.to_string()]).await?;
    // The dump has ended it; its pid must be free before it comes back.
    sleeper.wait().await.map_err(|error| error.to_string())?;
    let pid_file = dir.path().join("pid");
    let detached = ["--restore-detached".as_ref(), "--pidfile".as_ref(), pid_file.as_os_str()];
    criu(dir.path(), "restore", &detached).await?;
    end(&pid_file).await.map_err(|error| format!("the thawed process cannot be ended: {error}"))
}

/// Waits until `setsid` has become `sleep`: CRIU would freeze either, but
/// setsid not yet in its own session.
async fn asleep(pid: u32) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let comm = format!("/proc/{pid}/comm");
    while tokio::time::Instant::now() < deadline {
        match std::fs::read_to_string(&comm) {
            Ok(name) if name.trim_end() == "sleep" => return Ok(()),
            Ok(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            Err(_) => break,
        }
    }
    Err("the process to freeze does not come up".into())
}

async fn criu<S: AsRef<OsStr>>(dir: &Path, verb: &str, args: &[S]) -> Result<(), String> {
    let log_name = format!("{verb}.log");
    let output = Command::new("criu")
        .arg(verb)
        .args(args)
        .arg("--images-dir")
        .arg(dir)
        .args(["--log-file", &log_name, "-v1", "--network-lock", "skip", "--manage-cgroups=ignore"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Not a pipe: the thawed process would hold its end.
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    match tokio::time::timeout(DEADLINE, output).await {
        Err(_) => Err(format!("criu {verb} does not end")),
        Ok(Err(error)) => Err(format!("cannot start criu: {error}")),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => {
            let said = without_harmless(&log::tail(&dir.join(log_name)));
            Err(if said.is_empty() { format!("criu {verb} ended with {status}") } else { said })
        }
    }
}

/// Ends the thawed process, which is no child of ours any more.
async fn end(pid_file: &Path) -> io::Result<()> {
    let pid = std::fs::read_to_string(pid_file)?;
    let pid: i32 = pid.trim().parse().map_err(io::Error::other)?;
    let Some(handle) = process::open(pid, process::start_ticks(pid)?)? else { return Ok(()) };
    process::kill(&handle)?;
    process::ended(handle).await
}
