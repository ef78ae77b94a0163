//! Goldens: the shops that are booted once to be frozen.
//!
//! [`recipe`] is the form of `golden.toml`; a recipe is a folder with that file
//! and a Containerfile. [`build`] makes its image, which [`images`] keeps.

mod apt;
pub mod build;
pub mod images;
pub mod recipe;
mod source;
