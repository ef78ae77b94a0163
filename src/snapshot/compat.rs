//! Whether a snapshot can run on a host. Pure.
//!
//! Frozen processes go on where they stopped: with the instruction set they
//! had chosen, on the kernel features they had found. So the architecture must
//! be the same, the processor must have every feature the golden's had, and
//! the kernel must not be older.

use super::manifest::HostFacts;

/// Why a snapshot cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// Another instruction set.
    #[error("it was taken on {theirs}, this host is {ours}")]
    Architecture {
        /// The snapshot's.
        theirs: String,
        /// This host's.
        ours: String,
    },
    /// Features the frozen programs may be using.
    #[error("this host's processor lacks {}", .missing.join(", "))]
    CpuFeatures {
        /// What is missing, sorted.
        missing: Vec<String>,
    },
    /// An older kernel.
    #[error("it was taken on kernel {theirs}, this host runs the older {ours}")]
    Kernel {
        /// The snapshot's.
        theirs: String,
        /// This host's.
        ours: String,
    },
    /// An older CRIU, which may not know the image format.
    #[error("it was taken with CRIU {theirs}, this host has the older {ours}")]
    Criu {
        /// The snapshot's.
        theirs: String,
        /// This host's.
        ours: String,
    },
}

/// Flags that say something of the machine but offer no instruction to a
/// program, so that their absence cannot break one.
const HARMLESS: &[&str] = &[
    "arch_capabilities",
    "constant_tsc",
    "cpuid",
    "cpuid_fault",
    "flush_l1d",
    "hypervisor",
    "ibpb",
    "ibrs",
    "ibrs_enhanced",
    "md_clear",
    "nonstop_tsc",
    "nopl",
    "pti",
    "rep_good",
    "ssbd",
    "stibp",
    "tsc_adjust",
    "tsc_known_freq",
    "tsc_reliable",
    "vmx",
    "svm",
    "xtopology",
];

/// Tells whether a snapshot with facts `theirs` can run on a host with `ours`.
///
/// # Errors
/// The first reason why not.
pub fn check(theirs: &HostFacts, ours: &HostFacts) -> Result<(), Incompatible> {
    if theirs.architecture != ours.architecture {
        return Err(Incompatible::Architecture {
            theirs: theirs.architecture.clone(),
            ours: ours.architecture.clone(),
        });
    }
    let missing: Vec<String> = theirs
        .cpu_features
        .iter()
        .filter(|feature| !HARMLESS.contains(&feature.as_str()))
        .filter(|feature| !ours.cpu_features.contains(feature))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Err(Incompatible::CpuFeatures { missing });
    }
    if numbers(&ours.kernel) < numbers(&theirs.kernel) {
        return Err(Incompatible::Kernel { theirs: theirs.kernel.clone(), ours: ours.kernel.clone() });
    }
    if numbers(&ours.criu) < numbers(&theirs.criu) {
        return Err(Incompatible::Criu { theirs: theirs.criu.clone(), ours: ours.criu.clone() });
    }
    Ok(())
}

/// Major and minor of a version; what is not a number counts as 0.
#[must_use]
pub fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(features: &[&str], kernel: &str) -> HostFacts {
        HostFacts {
            architecture: "x86_64".into(),
            kernel: kernel.into(),
            cpu_features: features.iter().map(|&f| f.to_owned()).collect(),
            criu: "4.2.1".into(),
            podman: "5.8".into(),
            crun: "1.28".into(),
        }
    }

    #[test]
    fn a_host_with_more_features_and_a_newer_kernel_will_do() {
        let theirs = facts(&["avx2", "sse2"], "6.12.1");
        let ours = facts(&["avx2", "avx512f", "sse2"], "6.18.44-fc");
        assert_eq!(check(&theirs, &ours), Ok(()));
    }

    #[test]
    fn a_missing_instruction_set_is_named() {
        let error = check(&facts(&["avx2", "avx512f"], "6.12"), &facts(&["avx2"], "6.12")).unwrap_err();
        assert_eq!(error.to_string(), "this host's processor lacks avx512f");
    }

    #[test]
    fn flags_without_instructions_do_not_matter() {
        assert_eq!(check(&facts(&["hypervisor", "sse2"], "6.1"), &facts(&["sse2"], "6.1")), Ok(()));
    }

    #[test]
    fn an_older_kernel_is_refused() {
        assert!(matches!(
            check(&facts(&[], "6.12.3"), &facts(&[], "6.9.0")),
            Err(Incompatible::Kernel { .. })
        ));
    }
}
