//! What somebody does next about an error of a command, where the error itself
//! cannot know.

use std::io::ErrorKind;

/// A sentence for below the error; none where it says enough.
#[must_use]
pub fn next_step(error: &anyhow::Error) -> Option<&'static str> {
    advice(error, rustix::process::geteuid().is_root())
}

fn advice(error: &anyhow::Error, is_root: bool) -> Option<&'static str> {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    let is_forbidden = causes.any(|cause| cause.kind() == ErrorKind::PermissionDenied);
    (is_forbidden && !is_root).then_some("Only root may do this: try again with sudo.")
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn who_lacks_a_right_is_told_who_has_it() {
        let error =
            |kind: ErrorKind| Err::<(), _>(std::io::Error::from(kind)).context("cannot open it").unwrap_err();
        assert!(advice(&error(ErrorKind::PermissionDenied), false).is_some_and(|step| step.contains("sudo")));
        assert_eq!(
            advice(&error(ErrorKind::PermissionDenied), true),
            None,
            "root is refused for another reason"
        );
        assert_eq!(advice(&error(ErrorKind::NotFound), false), None);
    }
}
