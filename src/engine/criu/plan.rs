//! What CRIU must be told about the mounts that crun declared external.
//!
//! crun marks every bind mount and masked path of the container as external
//! when it checkpoints; a restore names what stands in for each. Computed once,
//! when a snapshot is prepared, from the container's OCI spec. Pure.

use std::path::PathBuf;

use serde_json::Value;

/// What stands in for an external mount in a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandIn {
    /// A file of the clone's own, copied from the snapshot.
    File,
    /// The directory of device nodes that all share.
    Devices,
    /// A tmpfs of the clone's own.
    Tmpfs,
    /// An empty file, in place of the null device: crun's mask of a file.
    Null,
    /// An empty directory: crun's mask of a directory.
    EmptyDir,
    /// A directory of the host, read-only.
    Host(PathBuf),
}

/// One external mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The mount point inside, which is also CRIU's key.
    pub key: String,
    /// What a clone gets there.
    pub stand_in: StandIn,
}

/// crun's one source for masked directories (crun's `linux.c`).
const CRUN_EMPTY_DIRECTORY: &str = "/run/crun/.empty-directory";

/// Reads the external mounts out of a container's `config.json`.
///
/// `is_dir` tells whether a path of the host is a directory: what crun looked
/// at when it chose the mask for a path below /proc or /sys.
#[must_use]
pub fn externals(spec: &Value, is_dir: impl Fn(&str) -> bool) -> Vec<External> {
    let mut found = Vec::new();
    for mount in spec["mounts"].as_array().into_iter().flatten() {
        let bind = mount["type"] == "bind"
            || mount["options"].as_array().into_iter().flatten().any(|o| o == "bind" || o == "rbind");
        if let (true, Some(destination)) = (bind, mount["destination"].as_str()) {
            let source_is_dir = mount["source"].as_str().is_some_and(&is_dir);
            let stand_in = match destination {
                "/dev" => StandIn::Devices,
                _ if source_is_dir || destination == "/dev/shm" => StandIn::Tmpfs,
                _ => StandIn::File,
            };
            found.push(External { key: destination.to_owned(), stand_in });
        }
    }
    for path in spec["linux"]["maskedPaths"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let stand_in = if is_dir(path) { StandIn::EmptyDir } else { StandIn::Null };
        found.push(External { key: path.to_owned(), stand_in });
    }
    found.push(External { key: CRUN_EMPTY_DIRECTORY.to_owned(), stand_in: StandIn::EmptyDir });
    found
}

/// A mount point as a file name.
#[must_use]
pub fn file_name(key: &str) -> String {
    key.trim_matches('/').replace('/', "-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn binds_and_masked_paths_are_external_and_the_rest_is_not() {
        let spec = json!({
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/etc/hosts", "type": "bind", "source": "/x/hosts", "options": ["bind"]},
                {"destination": "/dev/shm", "type": "bind", "source": "/x/shm"},
            ],
            "linux": {"maskedPaths": ["/proc/kcore", "/proc/acpi"]}
        });
        let found = externals(&spec, |path| path == "/proc/acpi");
        let stand_in = |key: &str| found.iter().find(|e| e.key == key).map(|e| e.stand_in.clone());
        assert_eq!(stand_in("/proc"), None);
        assert_eq!(stand_in("/etc/hosts"), Some(StandIn::File));
        assert_eq!(stand_in("/dev/shm"), Some(StandIn::Tmpfs));
        assert_eq!(stand_in("/proc/kcore"), Some(StandIn::Null));
        assert_eq!(stand_in("/proc/acpi"), Some(StandIn::EmptyDir));
    }
}
