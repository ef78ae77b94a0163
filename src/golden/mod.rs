//! Goldens: the shops that are booted once to be frozen.
//!
//! [`recipe`] is the form of `golden.toml`; a recipe is a folder with that file
//! and a Containerfile. [`build`] makes its image, which [`images`] keeps.
//! [`network`] is the part of the form that says what shops may reach outside.
//! [`similar`] finds the name that somebody meant.

mod apt;
pub mod build;
pub mod images;
pub mod network;
pub mod recipe;
pub mod similar;
mod source;
