//! The names that a shop knows: lines of its `/etc/hosts`.
//!
//! The file is the stranger's, who may have made anything of it: it is opened
//! below the shop's own root, written in place (it may be a mount), and its
//! other lines stay.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Known, Shop};
use crate::golden::network::DestinationHost;
use crate::restore::personalize;

const PATH: &str = "/etc/hosts";

/// What ends each line of ours.
const MARK: &str = " # demo-multiplexer";

/// A larger file is not read.
const SIZE_MAX: u64 = 64 << 10;

/// Writing takes less than a millisecond; longer, and the disk is gone.
const DEADLINE: Duration = Duration::from_secs(5);

/// Writes the addresses of a shop's names into its file.
///
/// # Errors
/// When the shop is gone, or the file cannot be written.
pub(super) async fn write(shop: &Shop, known: &Known) -> io::Result<()> {
    let hosts = shop.allowed.iter().filter_map(|destination| match &destination.host {
        DestinationHost::Name(name) => Some((name.clone(), known.get(&destination.host)?.clone())),
        DestinationHost::Address(_) => None,
    });
    let mut names: Vec<(String, Ipv4Addr)> = hosts
        .flat_map(|(name, found)| found.into_iter().map(move |address| (name.clone(), address)))
        .collect();
    names.sort();
    names.dedup();
    let (pid, start_ticks) = (shop.pid, shop.start_ticks);
    let written = tokio::task::spawn_blocking(move || {
        personalize::edit((pid, start_ticks), PATH, SIZE_MAX, |text| with_names(text, &names))
    });
    match tokio::time::timeout(DEADLINE, written).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The file with these names in place of former ones of ours.
fn with_names(text: &str, names: &[(String, Ipv4Addr)]) -> String {
    let kept = text.lines().filter(|line| !line.ends_with(MARK)).map(str::to_owned);
    let ours = names.iter().map(|(name, address)| format!("{address}\t{name}{MARK}"));
    kept.chain(ours).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_lines_are_replaced_and_others_stay() {
        let names = |list: &[(&str, &str)]| -> Vec<(String, Ipv4Addr)> {
            list.iter().map(|(name, address)| ((*name).to_owned(), address.parse().unwrap())).collect()
        };
        let first = with_names("127.0.0.1 localhost", &names(&[("api.example", "192.0.2.1")]));
        assert_eq!(first, "127.0.0.1 localhost\n192.0.2.1\tapi.example # demo-multiplexer\n");
        let edited = first + "10.0.0.1 mine\n";
        let second = with_names(&edited, &names(&[("api.example", "192.0.2.2")]));
        assert_eq!(second, "127.0.0.1 localhost\n10.0.0.1 mine\n192.0.2.2\tapi.example # demo-multiplexer\n");
        assert_eq!(with_names(&second, &[]), "127.0.0.1 localhost\n10.0.0.1 mine\n");
    }
}
