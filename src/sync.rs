//! The locks of what runs at once in this process, under one name.
//!
//! `tests/interleavings.rs` builds the modules that take them from here on locks that
//! let another task go first at each step, and tries their interleavings.

pub use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
