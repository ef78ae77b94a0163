//! The form of `golden.toml`, checked strictly: an unknown key is an error.
//!
//! A recipe travels inside the snapshot's manifest, so that a restored clone is
//! personalized by the recipe its golden was built with, whatever the folder
//! says by then. What the form alone does not say is in [`check`]. Pure: reading the folder is [`Recipe::load`]'s one effect.

mod check;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::network::NetworkAccess;
use super::similar::did_you_mean;
use crate::id::GoldenName;

/// A golden's `golden.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The golden's name.
    pub name: GoldenName,
    /// Shown to people.
    pub title: String,
    /// Of the shop's software; informational.
    pub version: String,
    /// A folder beside the recipe's that its Containerfile shares with others.
    pub common: Option<String>,
    /// The base root file system, when it is made here from Debian packages.
    pub base: Option<Base>,
    /// The shop's own release, when it is not in the base's packages.
    pub source: Option<SourceArchive>,
    /// What visitors are told of it, beside title and version.
    #[serde(default, skip_serializing_if = "About::is_empty")]
    pub about: About,
    /// How the container runs.
    pub run: Run,
    /// When it counts as up.
    pub ready: Ready,
    /// The back office.
    pub admin: Admin,
    /// What shops may reach outside; not part of what is frozen.
    #[serde(default, skip_serializing_if = "NetworkAccess::is_closed")]
    pub network: NetworkAccess,
    /// Done in order before the checkpoint, so that clones find warm caches.
    #[serde(default)]
    pub warm: Vec<Warm>,
    /// Commands run in the container just before the checkpoint.
    #[serde(default)]
    pub quiesce: Vec<Quiesce>,
    /// What makes each clone its own.
    #[serde(default)]
    pub personalize: Personalize,
    /// What makes a visitor's shop a golden that others are made of.
    #[serde(default, skip_serializing_if = "Template::is_empty")]
    pub template: Template,
}

/// What visitors are told of a golden.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The shop's software by its own name, such as `PrestaShop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software: Option<String>,
    /// The language that the shop speaks, such as `en`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

impl About {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A base image made with mmdebstrap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The Debian suite.
    pub suite: String,
    /// Packages beside the minimal set.
    pub packages: Vec<String>,
}

/// Where the shop's release comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceArchive {
    /// The setting that names an archive or folder.
    pub env: String,
    /// The official download, tried when the setting is empty.
    pub download: Option<String>,
    /// The download's SHA-256, hexadecimal.
    pub sha256: Option<String>,
}

/// How the container runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The web server's port inside.
    pub port: u16,
    /// The cgroup's memory.max, such as `768M`.
    pub memory_max: String,
    /// The cgroup's pids.max.
    pub pids_max: u32,
    /// Processor time, in cores.
    pub cpu_max: f64,
    /// Bytes a second that may be read from the disk below STATE_DIR, such as
    /// `400M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_max: Option<String>,
    /// Bytes a second that may be written to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_write_max: Option<String>,
    /// Linux capabilities it keeps, without `CAP_`.
    pub capabilities: Vec<String>,
    /// The database's unix socket inside.
    pub database_socket: Option<String>,
    /// The database that personalize statements run in.
    pub database: Option<String>,
    /// Who the shop is on its own server, where no password is asked.
    pub database_user: Option<String>,
    /// A program inside that moves the database, for `DATABASE_MODE=shared`.
    pub database_program: Option<String>,
    /// Whether memory that its programs share with what they start later (an
    /// opcode cache) may become each one's own in a clone. It then lies in the
    /// host's memory once for all clones, but for what they write to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unshare_memory: bool,
    /// Log files inside, shown by `demo-multiplexer logs`.
    #[serde(default)]
    pub logs: Vec<String>,
    /// Fragments of command lines that must be gone before the checkpoint.
    #[serde(default)]
    pub processes: Vec<String>,
    /// Programs whose private memory clones map from files instead of copying
    /// it, such as `mariadbd`. They must not rely on memory being zero that
    /// they gave back by `MADV_DONTNEED`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mapped_memory: Vec<String>,
    /// A file inside that lists, a line each, paths that a first page looks up.
    /// They are looked up in a clone's root before a visitor waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<String>,
}

/// When the shop counts as up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The page asked for.
    pub path: String,
    /// What a 200 answer must contain.
    pub contains: String,
    /// How long a cold start may take.
    pub timeout_seconds: u64,
}

/// The back office.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Appended to the instance's url.
    pub path: String,
    /// Where the login form is.
    pub login_path: String,
    /// Signs the administrator in once, by `{token}` in it; appended to the
    /// instance's url. The instance checks it with the key that
    /// `[personalize]` gives it as `{login_key}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_click: Option<String>,
    /// Whether a one-click link with `&module=NAME` at its end leads to that
    /// module's page.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_click_module: bool,
}

/// What makes a visitor's shop a golden, before it is booted as one. What is the
/// visitor's own (addresses, passwords, keys) goes by `[personalize]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Files and directories that are removed, such as caches that hold the shop's
    /// old address; one with a slash at its end is emptied and stays. Absent ones are
    /// fine.
    #[serde(default)]
    pub remove: Vec<String>,
    /// A command run inside when it is booted, while it still has the visitor's identity
    /// and before its first page: it takes out what only the visitor may know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Files that are written before it is warmed. `{admin_password}` is the one that
    /// the commands of `[[warm]]` log in with.
    #[serde(default)]
    pub files: Vec<PersonalFile>,
}

impl Template {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One step of warming: either a page or a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warm {
    /// A page to GET.
    pub path: Option<String>,
    /// How often.
    #[serde(default = "one")]
    pub times: u32,
    /// A command run in the container.
    pub exec: Option<Vec<String>>,
}

const fn one() -> u32 {
    1
}

/// One command before the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quiesce {
    /// The command.
    pub exec: Vec<String>,
}

/// What makes each clone its own; done before anyone can reach it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Personalize {
    /// Whether the clone gets its own host name.
    #[serde(default)]
    pub hostname: bool,
    /// Named values, drawn anew for each clone.
    #[serde(default)]
    pub values: BTreeMap<String, String>,
    /// Files rewritten in the clone.
    #[serde(default)]
    pub files: Vec<PersonalFile>,
    /// Statements run in the clone's database, in order.
    #[serde(default)]
    pub sql: Vec<PersonalSql>,
    /// Files deleted in the clone.
    #[serde(default)]
    pub remove: PersonalRemove,
}

impl Personalize {
    /// Whether the placeholder of that name is used.
    #[must_use]
    pub fn mentions(&self, name: &str) -> bool {
        let files = self.files.iter();
        let texts = files.flat_map(|file| file.content.iter().chain(file.replace.iter().map(|it| &it.with)));
        let texts = texts.chain(self.sql.iter().flat_map(|sql| &sql.args)).chain(self.values.values());
        let placeholder = format!("{{{name}}}");
        texts.into_iter().any(|text| text.contains(&placeholder))
    }
}

/// A file written whole or patched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonalFile {
    /// Its path inside the container.
    pub path: String,
    /// Octal permission bits of a file written whole.
    pub mode: Option<String>,
    /// `uid:gid` or a name of the container's passwd, of a file written whole.
    pub owner: Option<String>,
    /// Its whole content.
    pub content: Option<String>,
    /// Texts to replace; each must be found.
    #[serde(default)]
    pub replace: Vec<Replace>,
}

/// One replacement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    /// The golden's sentinel.
    pub find: String,
    /// What the clone gets.
    pub with: String,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonalSql {
    /// SQL with `?` for each argument.
    pub statement: String,
    /// The arguments, with placeholders.
    #[serde(default)]
    pub args: Vec<String>,
}

/// Files deleted in the clone; absent ones are fine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonalRemove {
    /// Their paths inside the container.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Neither a folder nor a recipe's name.
    #[error(
        "golden {name:?} is unknown: no folder {}; there are: {}{}", .folder.display(), .known.join(", "),
        did_you_mean(.name, .known)
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// The recipes that are there.
        known: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not of the form.
    #[error("{} is not a golden.toml", .path.display())]
    Form {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The file is of the form but makes no sense.
    #[error("{}: {problem}", .path.display())]
    Sense {
        /// Which file.
        path: PathBuf,
        /// What to change.
        problem: String,
    },
}

impl Run {
    /// The directory of the database's socket inside.
    #[must_use]
    pub fn socket_directory(&self) -> Option<&str> {
        let (directory, _) = self.database_socket.as_deref()?.rsplit_once('/')?;
        (!directory.is_empty()).then_some(directory)
    }
}

impl Recipe {
    /// Reads a recipe's folder: `name` is a folder (it contains a slash) or the
    /// name of one below `recipe_dir`. Answers the folder with the recipe.
    ///
    /// # Errors
    /// [`RecipeError`], which says where it looked.
    pub fn load(name: &str, recipe_dir: &Path) -> Result<(PathBuf, Self), RecipeError> {
        let folder = if name.contains('/') { PathBuf::from(name) } else { recipe_dir.join(name) };
        let path = folder.join("golden.toml");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RecipeError::Unknown { name: name.to_owned(), folder, known: known(recipe_dir) });
            }
            Err(source) => return Err(RecipeError::Read { path, source }),
        };
        let recipe = Self::parse(&text, &path)?;
        Ok((folder, recipe))
    }

    /// Reads and checks the text of a `golden.toml`; `path` is for errors.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        let recipe: Self = toml::from_str(text)
            .map_err(|source| RecipeError::Form { path: path.to_owned(), source: Box::new(source) })?;
        recipe.check().map_err(|problem| RecipeError::Sense { path: path.to_owned(), problem })?;
        Ok(recipe)
    }
}

/// Names of the recipes below `recipe_dir`, sorted.
#[must_use]
pub fn known(recipe_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(recipe_dir) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("golden.toml").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
