//! Names of packages in the distributions that are supported.

/// A family of distributions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Debian and what is made of it, but for Ubuntu.
    Debian,
    /// Ubuntu and what is made of it.
    Ubuntu,
    /// Fedora, RHEL and what is made of them.
    Fedora,
    /// Any other: advice names all of the above.
    Other,
}

/// A package under its names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Package {
    debian: &'static str,
    fedora: &'static str,
    /// Added to the advice for one family: from which release on it is new enough.
    notes: &'static [(Family, &'static str)],
}

const fn package(debian: &'static str, fedora: &'static str) -> Package {
    Package { debian, fedora, notes: &[] }
}

pub(super) const CRIU: Package = Package {
    debian: "criu libcriu2",
    fedora: "criu criu-libs",
    notes: &[
        (Family::Debian, "Debian 13 or newer has one that is new enough"),
        (
            Family::Ubuntu,
            "Ubuntu 25.10 or newer has one that is new enough; for 24.04 take devel:tools:criu of the openSUSE Build Service",
        ),
    ],
};
pub(super) const PODMAN: Package = Package {
    debian: "podman",
    fedora: "podman",
    notes: &[(Family::Debian, "Debian 13 or newer has one that is new enough")],
};
pub(super) const DOCKER: Package = package("docker.io", "moby-engine");
pub(super) const CRUN: Package = package("crun", "crun");
pub(super) const LIBCRIU: Package = package("libcriu2", "criu-libs");
pub(super) const NFTABLES: Package = package("nftables", "nftables");
pub(super) const XFSPROGS: Package = package("xfsprogs", "xfsprogs");

impl Family {
    /// Reads `/etc/os-release`.
    pub(super) fn of(os_release: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_ascii_lowercase()
        };
        let (id, like) = (value("ID"), value("ID_LIKE"));
        let names: Vec<&str> = std::iter::once(id.as_str()).chain(like.split_ascii_whitespace()).collect();
        let any = |wanted: &[&str]| names.iter().any(|name| wanted.contains(name));
        // Ubuntu is like Debian, so it is asked for first.
        if any(&["ubuntu"]) {
            Self::Ubuntu
        } else if any(&["debian"]) {
            Self::Debian
        } else if any(&["fedora", "rhel", "centos"]) {
            Self::Fedora
        } else {
            Self::Other
        }
    }

    /// The command that installs a package.
    pub(super) fn install(self, package: Package) -> String {
        self.install_all(package.debian, package.fedora, package.notes)
    }

    /// The command that installs programs whose packages have their names everywhere.
    pub(super) fn install_programs(self, programs: &[&str]) -> String {
        let names = programs.join(" ");
        self.install_all(&names, &names, &[])
    }

    fn install_all(self, debian: &str, fedora: &str, notes: &[(Self, &str)]) -> String {
        let note = notes.iter().find(|(family, _)| *family == self);
        let note = note.map(|(_, text)| format!(" ({text})")).unwrap_or_default();
        match self {
            Self::Debian | Self::Ubuntu => format!("apt-get install {debian}{note}"),
            Self::Fedora => format!("dnf install {fedora}{note}"),
            Self::Other => {
                format!("install {debian} (Debian's and Ubuntu's names) or {fedora} (Fedora's)")
            }
        }
    }
}
