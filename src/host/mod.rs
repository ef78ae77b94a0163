//! The kernel's side of an instance: address, network namespace, cgroup,
//! processes.
//!
//! Called by the engine drivers. Nothing here knows of CRIU or Podman. What is
//! made here is named after the instance id, so that traces of it can be found
//! on the host whatever the store says.

pub mod cgroup;
pub mod claim;
pub mod devices;
pub mod digests;
mod disk;
pub mod enter;
pub mod facts;
pub mod firewall;
pub mod layers;
pub mod memory;
pub mod mounts;
pub mod net;
mod netns;
pub mod process;
pub mod quota;
mod seccomp;
pub mod slots;
mod strays;
pub mod tree;
