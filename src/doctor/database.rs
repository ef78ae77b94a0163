//! The shared database server, when shops share one: tried as a daemon would use
//! it, then judged.

use super::Finding;
use super::facts::{Facts, Tried};
use super::judge::{fail, ok};
use crate::config::Config;
use crate::database::{DatabaseError, Server, Version};
use crate::error::Chain;

/// The oldest that the recipes and the copying were tried with.
const LEAST: Version = Version(10, 11);

/// Asks the server for its version and has it do all that a daemon needs; what
/// is made for that is dropped again.
pub(super) async fn trial(config: &Config) -> Tried<String> {
    let settings = config.database.clone()?;
    let tried = async {
        let server = Server::open(settings)?;
        let version = server.version().await?;
        server.trial().await?;
        Ok::<_, DatabaseError>(version)
    };
    Some(tried.await.map_err(|error| Chain(&error).to_string()))
}

/// Judges what was seen; nothing is said of a server that nobody shares.
pub(super) fn judge(facts: &Facts, config: &Config) -> Option<Finding> {
    let (tried, server) = (facts.database.as_ref()?, config.database.as_ref()?);
    let (name, user) = ("database", &server.user);
    Some(match tried {
        Ok(version) if Version::parse(version).is_some_and(|ours| ours >= LEAST) => {
            ok(name, format!("{version}; {user} may make databases and users"))
        }
        Ok(version) => fail(name, version.as_str(), format!("use MariaDB {}.{} or newer", LEAST.0, LEAST.1)),
        Err(error) => {
            // Up to the first underscore, which a grant takes for any character.
            let names = server.prefix.split('_').next().unwrap_or_default();
            fail(
                name,
                format!("{}: {error}", server.socket.display()),
                format!(
                    "start MariaDB there, and let {user} in: GRANT CREATE USER ON *.* TO {user}@localhost; \
                     GRANT ALL ON `{names}%`.* TO {user}@localhost WITH GRANT OPTION"
                ),
            )
        }
    })
}
