//! Goldens: the shops that are booted once to be frozen.
//!
//! [`recipe`] is the form of `golden.toml`; a recipe is a folder with that file
//! and a Containerfile.

pub mod recipe;
