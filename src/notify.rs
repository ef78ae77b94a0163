//! What systemd is told, and the sockets it hands over.
//!
//! Called by [`crate::app`]. Outside of systemd everything here does nothing. A
//! message that cannot be sent is no reason to stop serving, so it is dropped.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

/// Everything is up.
pub fn ready(status: &str) {
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The way down has begun.
pub fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// One sentence for `systemctl status`.
pub fn status(text: &str) {
    let _ = sd_notify::notify(&[NotifyState::Status(text)]);
}

/// Tells the watchdog that the runtime turns, for as long as it is polled.
/// Never returns; returns at once to nobody when no watchdog is set.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    // Twice within the limit, so that one late wake-up is no death.
    let mut tick = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        tick.tick().await;
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}

/// What the socket of ADMIN_LISTEN is called: `FileDescriptorName=` of its unit.
/// Any other name, and none, is LISTEN's.
const ADMIN: &str = "admin";

/// The sockets that systemd listens on for this service.
#[derive(Debug, Default)]
pub struct Inherited {
    /// For LISTEN.
    pub listen: Option<std::net::TcpListener>,
    /// For ADMIN_LISTEN.
    pub admin: Option<std::net::TcpListener>,
}

/// Takes over the sockets that systemd listens on, the first one of each kind.
///
/// # Errors
/// When the environment names sockets that are not there.
pub fn inherited_listeners() -> io::Result<Inherited> {
    take_over(sd_notify::listen_fds_with_names()?)
}

fn take_over(sockets: impl Iterator<Item = (RawFd, String)>) -> io::Result<Inherited> {
    let mut found = Inherited::default();
    for (number, name) in sockets {
        let place = if name == ADMIN { &mut found.admin } else { &mut found.listen };
        if place.is_none() {
            let listener = std::net::TcpListener::from(own_copy(number)?);
            listener.set_nonblocking(true)?;
            *place = Some(listener);
        }
    }
    Ok(found)
}

/// A safe way from a descriptor's number to an owned one: a copy, taken as a
/// debugger would take it, from ourselves.
fn own_copy(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_listener_is_found_by_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let copy = TcpListener::from(own_copy(listener.as_raw_fd()).unwrap());
        assert_eq!(copy.local_addr().unwrap(), listener.local_addr().unwrap());
        assert!(own_copy(999_999).is_err());
    }

    #[test]
    fn a_socket_is_the_admins_by_its_name() {
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let of = |names: [&str; 3]| {
            let numbered = sockets.iter().zip(names).map(|(it, name)| (it.as_raw_fd(), name.to_owned()));
            let found = take_over(numbered).unwrap();
            let which = |it: Option<TcpListener>| {
                let address = it?.local_addr().unwrap();
                sockets.iter().position(|socket| socket.local_addr().unwrap() == address)
            };
            (which(found.listen), which(found.admin))
        };
        assert_eq!(of(["demo-multiplexer.socket", "admin", "x"]), (Some(0), Some(1)));
        assert_eq!(of(["admin", "admin", "unknown"]), (Some(2), Some(0)));
        assert_eq!(of(["a", "b", "c"]), (Some(0), None));
    }
}
