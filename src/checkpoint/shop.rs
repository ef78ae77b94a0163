//! A visitor's shop that is booted to become a golden: what was its own goes.
//!
//! As a clone is personalized, from outside and before anybody may reach it, but for
//! the host name that all goldens have. Its database has come up from the files of a
//! shop that was frozen while it ran, as after a crash.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::golden::{GoldenError, own_values};
use crate::golden::recipe::{Personalize, Recipe};
use crate::identity::Credentials;
use crate::restore::personalize::{self, Subject};

/// Its host name inside.
const HOST_NAME: &str = "golden";

/// How often a database that is not up yet is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives a booting container a golden's identity.
///
/// # Errors
/// [`GoldenError`]: also when its database does not come up in time.
pub(super) async fn become_golden(pid: i32, recipe: &Recipe) -> Result<(), GoldenError> {
    // Whoever warms it logs in by them; each clone has its own.
    let credentials = Credentials::new()?;
    let mut values = own_values();
    values.set("admin_password", credentials.password.expose_secret());
    values.set("admin_password_bcrypt", credentials.bcrypt.expose_secret());
    values.set_database(&recipe.run, None);
    values.draw(&recipe.personalize.values)?;
    let subject = Subject { pid, host_name: HOST_NAME, run: &recipe.run, database: None };
    let deadline = Instant::now() + Duration::from_secs(recipe.ready.timeout_seconds);
    // Again from the start: each step is the same when it is done twice.
    while let Err(error) = personalize::apply(&subject, &recipe.personalize, &values).await {
        if Instant::now() > deadline {
            return Err(error.into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    let files = Personalize { files: recipe.template.files.clone(), ..Personalize::default() };
    Ok(personalize::write_files(pid, &files, &values)?)
}
