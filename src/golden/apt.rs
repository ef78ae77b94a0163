//! The machine's own Debian mirror, read from its apt configuration. Pure but
//! for reading those files.

use std::path::Path;

/// `deb` lines for a Debian suite from the mirrors this machine uses; empty
/// when it uses none of Debian's (then mmdebstrap's default serves).
#[must_use]
pub(super) fn sources_for(suite: &str, apt_dir: &Path) -> Vec<String> {
    let mut uris: Vec<(String, bool)> = Vec::new();
    let mut files = vec![apt_dir.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(apt_dir.join("sources.list.d")) {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let found = match file.extension().and_then(|e| e.to_str()) {
            Some("sources") => deb822(&text),
            Some("list") => one_line(&text),
            _ => Vec::new(),
        };
        for uri in found {
            let security = uri.trim_end_matches('/').ends_with("-security");
            if !uris.iter().any(|(known, _)| *known == uri) {
                uris.push((uri, security));
            }
        }
    }
    let line = |uri: &str, suite: &str| format!("deb {uri} {suite} main");
    let Some((main, _)) =
        uris.iter().find(|(uri, security)| !security && uri.trim_end_matches('/').ends_with("/debian"))
    else {
        return Vec::new();
    };
    let mut lines = vec![line(main, suite), line(main, &format!("{suite}-updates"))];
    if let Some((uri, _)) = uris.iter().find(|(_, security)| *security) {
        lines.push(line(uri, &format!("{suite}-security")));
    }
    lines
}

fn deb822(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("URIs:"))
        .flat_map(str::split_ascii_whitespace)
        .map(str::to_owned)
        .collect()
}

fn one_line(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("deb "))
        .filter_map(|rest| rest.split_ascii_whitespace().find(|word| word.contains("://")))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        sources_for("bookworm", dir.path())
    }

    #[test]
    fn both_forms_of_apt_sources_are_read() {
        let modern = "Types: deb\nURIs: http://mirror.test/debian\nSuites: trixie\n\nTypes: deb\nURIs: http://mirror.test/debian-security\nSuites: x\n";
        let lines = with("sources.list.d/debian.sources", modern);
        assert_eq!(lines[0], "deb http://mirror.test/debian bookworm main");
        assert_eq!(lines[2], "deb http://mirror.test/debian-security bookworm-security main");
        let classic = "# x\ndeb [signed-by=/x] http://mirror.test/debian trixie main\n";
        assert_eq!(with("sources.list", classic)[1], "deb http://mirror.test/debian bookworm-updates main");
    }

    #[test]
    fn a_machine_without_a_debian_mirror_uses_mmdebstraps_own() {
        assert!(with("sources.list", "deb http://mirror.test/ubuntu noble main\n").is_empty());
    }
}
