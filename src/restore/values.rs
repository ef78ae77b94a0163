//! Placeholders of a recipe and what stands for them in one clone. Pure, but
//! for the random generator.
//!
//! A placeholder is `{name}` or `{kind:N}`, lower-case letters and digits; any
//! other brace is text, so that PHP and JSON need no escapes.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;

use crate::engine::OwnDatabase;
use crate::golden::recipe::Run;
use crate::identity;

/// What a recipe asks for and this program does not know.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// No value of that name.
    #[error("the placeholder {{{name}}} is unknown")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// More random characters than any key has.
    #[error("the placeholder {{{name}}} asks for too much")]
    TooLong {
        /// Its name.
        name: String,
    },
}

/// The longest random text a recipe may ask for.
const RANDOM_MAX: usize = 4096;

/// Values of one clone by name.
#[derive(Default)]
pub struct Values(BTreeMap<String, String>);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets among them: names only.
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Values {
    /// Adds a value.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Adds where the shop finds its database: on the shared server as its own
    /// user, else on the one beside it, which asks for no password.
    pub fn set_database(&mut self, run: &Run, own: Option<&OwnDatabase>) {
        let bundled = |said: &Option<String>| said.clone().unwrap_or_default();
        let [name, user, password] = match own {
            Some(own) => [own.name.clone(), own.user.clone(), own.password.expose_secret().to_owned()],
            None => [bundled(&run.database), bundled(&run.database_user), String::new()],
        };
        self.set("database", name);
        self.set("database_user", user);
        self.set("database_password", password);
    }

    /// Draws the recipe's own values, which may use those set so far.
    ///
    /// # Errors
    /// [`RenderError`].
    pub fn draw(&mut self, templates: &BTreeMap<String, String>) -> Result<(), RenderError> {
        for (name, template) in templates {
            let value = self.render(template)?;
            self.set(name, value);
        }
        Ok(())
    }

    /// Replaces all placeholders of a text.
    ///
    /// # Errors
    /// [`RenderError`].
    pub fn render(&self, template: &str) -> Result<String, RenderError> {
        let mut out = String::with_capacity(template.len());
        let mut rest = template;
        while let Some(start) = rest.find('{') {
            out.push_str(&rest[..start]);
            rest = &rest[start..];
            match rest.find('}').map(|end| (&rest[1..end], end)).filter(|(name, _)| is_placeholder(name)) {
                Some((name, end)) => {
                    out.push_str(&self.value(name)?);
                    rest = &rest[end + 1..];
                }
                None => {
                    out.push('{');
                    rest = &rest[1..];
                }
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn value(&self, name: &str) -> Result<String, RenderError> {
        if let Some(value) = self.0.get(name) {
            return Ok(value.clone());
        }
        let (kind, length) = match name.split_once(':') {
            Some((kind, digits)) => (kind, digits.parse().unwrap_or(usize::MAX)),
            None => (name, 0),
        };
        if length > RANDOM_MAX {
            return Err(RenderError::TooLong { name: name.to_owned() });
        }
        match kind {
            "hex" => Ok(identity::hex(length)),
            "alnum" => Ok(identity::alnum(length)),
            "uuid" => Ok(identity::uuid()),
            "defuse_key" => Ok(identity::defuse_key()),
            _ => Err(RenderError::Unknown { name: name.to_owned() }),
        }
    }
}

fn is_placeholder(name: &str) -> bool {
    let (word, digits) = name.split_once(':').unwrap_or((name, "0"));
    !word.is_empty()
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
        && !word.starts_with(|first: char| first.is_ascii_digit())
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_other_braces_are_text() {
        let mut values = Values::default();
        values.set("host", "a.localhost");
        let text = values.render("x {host} {$y} {} { a: {\"b\":1} {color:red} {").unwrap();
        assert_eq!(text, "x a.localhost {$y} {} { a: {\"b\":1} {color:red} {");
    }

    #[test]
    fn random_values_have_the_length_asked_for_and_named_ones_stay_the_same() {
        let mut values = Values::default();
        values.draw(&BTreeMap::from([("secret".to_owned(), "{hex:64}".to_owned())])).unwrap();
        let one = values.render("{secret}").unwrap();
        assert_eq!(one.len(), 64);
        assert_eq!(one, values.render("{secret}").unwrap());
        assert_ne!(values.render("{hex:64}").unwrap(), values.render("{hex:64}").unwrap());
    }

    #[test]
    fn a_typing_error_in_a_recipe_is_named() {
        let error = Values::default().render("{admin_mail}").unwrap_err();
        assert_eq!(error.to_string(), "the placeholder {admin_mail} is unknown");
        assert!(Values::default().render("{hex:99999999}").is_err());
    }
}
