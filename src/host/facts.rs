//! What this host is, as far as a frozen process, or a shop's way out, depends on it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use nix::sys::socket::SockaddrIn;

/// The kernel's release, such as `6.12.48+deb13-amd64`.
#[must_use]
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The machine, such as `x86_64`.
#[must_use]
pub fn architecture() -> String {
    rustix::system::uname().machine().to_string_lossy().into_owned()
}

/// The processor's feature flags, sorted.
///
/// # Errors
/// When /proc/cpuinfo cannot be read.
pub fn cpu_features() -> io::Result<Vec<String>> {
    Ok(parse_features(&std::fs::read_to_string("/proc/cpuinfo")?))
}

/// x86 says `flags`, arm64 says `Features`.
fn parse_features(cpuinfo: &str) -> Vec<String> {
    let mut features: Vec<String> = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| matches!(key.trim(), "flags" | "Features"))
        .map(|(_, flags)| flags.split_ascii_whitespace().map(str::to_owned).collect())
        .unwrap_or_default();
    features.sort();
    features
}

/// The name of the file system a path lies on; its magic number when it is none
/// that matters here (statfs(2)).
#[must_use]
pub fn file_system(path: &Path) -> String {
    match rustix::fs::statfs(path).map(|stat| stat.f_type) {
        Ok(0x5846_5342) => "xfs".into(),
        Ok(0x9123_683e) => "btrfs".into(),
        Ok(0xef53) => "ext4".into(),
        Ok(0x0102_1994) => "tmpfs".into(),
        Ok(0x794c_7630) => "overlay".into(),
        Ok(other) => format!("{other:#x}"),
        Err(error) => error.to_string(),
    }
}

/// All IPv4 addresses of this host.
///
/// # Errors
/// When they cannot be listed.
pub fn own_addresses() -> io::Result<HashSet<Ipv4Addr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| interface.address);
    Ok(addresses.filter_map(|address| address.as_sockaddr_in().map(SockaddrIn::ip)).collect())
}

/// Tries whether files in `dir` can be copied by reference; leaves two small
/// ones there.
///
/// # Errors
/// When they cannot.
pub fn reflink(dir: &Path) -> io::Result<()> {
    // A block and more: some file systems keep smaller files where they cannot be shared.
    std::fs::write(dir.join("from"), [7; 64 * 1024])?;
    let (from, to) = (File::open(dir.join("from"))?, File::create(dir.join("to"))?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sorted_words_of_the_first_processor() {
        assert_eq!(
            parse_features("processor\t: 0\nflags\t\t: sse2 avx\nprocessor: 1\nflags: x\n"),
            ["avx", "sse2"]
        );
        assert_eq!(parse_features("Features\t: fp asimd\n"), ["asimd", "fp"]);
    }
}
