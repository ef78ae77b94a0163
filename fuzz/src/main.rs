//! One program for all targets, since each takes minutes to link: FUZZ_TARGET
//! names the one that is run. What they do is in `src/testing/fuzz`.

#![no_main]

use std::sync::LazyLock;

use demo_multiplexer::testing::fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let names = TARGETS.map(|(name, _)| name).join(", ");
    let found = TARGETS.into_iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET={name:?}: one of {names}")).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
