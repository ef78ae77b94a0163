//! The golden's own program that moves its database: it knows its client, and
//! what of a server's objects a dump has to name. It runs in a container of the
//! golden's files, under Podman, without a network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use secrecy::ExposeSecret as _;

use super::{DatabaseError, Server};
use crate::engine::OwnDatabase;
use crate::engine::podman::cli;
use crate::golden::recipe::Recipe;

/// What the container's root is.
#[derive(Debug, Clone)]
pub enum Root {
    /// An image, by its name.
    Image(String),
    /// A directory, which is not changed.
    Directory(PathBuf),
}

/// Moves a golden's database.
#[derive(Debug, Clone)]
pub struct Mover {
    root: Root,
    program: String,
    /// Where a shop expects the server's socket: its directory.
    inside: String,
}

impl Mover {
    /// The mover of a golden's database to and from a server.
    ///
    /// # Errors
    /// [`DatabaseError::NoProgram`], [`DatabaseError::SocketName`].
    pub fn of(recipe: &Recipe, root: Root, server: &Server) -> Result<Self, DatabaseError> {
        let run = &recipe.run;
        let (Some(program), Some(socket), Some(inside)) =
            (&run.database_program, &run.database_socket, run.socket_directory())
        else {
            return Err(DatabaseError::NoProgram { golden: recipe.name.to_string() });
        };
        let name = |path: &Path| path.file_name().map(ToOwned::to_owned);
        if name(Path::new(socket)) != name(server.socket()) {
            let (ours, theirs) = (server.socket().to_owned(), socket.clone());
            return Err(DatabaseError::SocketName { ours, theirs });
        }
        Ok(Self { root, program: program.clone(), inside: inside.to_owned() })
    }

    /// Writes the database that was built into the image to a new file.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(super) async fn export_built(&self, to: &Path) -> Result<(), DatabaseError> {
        let file = File::options().write(true).create_new(true).open(to);
        let file = file.map_err(io_at("create", to))?;
        let doing = "export the database it was built with";
        self.run(doing, "export-built", Vec::new(), &[], (Stdio::null(), file.into())).await
    }

    /// Fills a database from a file.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(super) async fn import(
        &self,
        server: &Server,
        own: &OwnDatabase,
        from: &Path,
    ) -> Result<(), DatabaseError> {
        let file = File::open(from).map_err(io_at("open", from))?;
        // Named here, valued in Podman's environment: what is in an argument,
        // everybody on the host can read.
        let environment = [
            ("DATABASE_NAME", own.name.as_str()),
            ("DATABASE_USER", &own.user),
            ("DATABASE_PASSWORD", own.password.expose_secret()),
        ];
        let mut args = vec![
            "--interactive".to_owned(),
            format!("--volume={}:{}:ro", server.directory().display(), self.inside),
        ];
        args.extend(environment.map(|(name, _)| format!("--env={name}")));
        let doing = "import a database";
        self.run(doing, "import", args, &environment, (file.into(), Stdio::null())).await
    }

    async fn run(
        &self,
        doing: &'static str,
        verb: &str,
        more: Vec<String>,
        environment: &[(&str, &str)],
        (input, output): (Stdio, Stdio),
    ) -> Result<(), DatabaseError> {
        let mut args: Vec<String> =
            ["run", "--rm", "--network=none", "--log-driver=none", "--pull=never"].map(str::to_owned).into();
        args.extend(more);
        // Empty: the program is the command, whatever the image's entry point.
        args.push("--entrypoint=".to_owned());
        match &self.root {
            Root::Image(name) => args.push(name.clone()),
            // `:O`: an overlay that goes with the container.
            Root::Directory(path) => args.extend(["--rootfs".to_owned(), format!("{}:O", path.display())]),
        }
        args.extend([self.program.clone(), verb.to_owned()]);
        let ran = cli::podman_piped(&args, environment, (input, output)).await;
        ran.map_err(|source| DatabaseError::Program { doing, source })
    }
}

pub(super) fn io_at<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> DatabaseError + 'a {
    move |source| DatabaseError::Io { doing, path: path.to_owned(), source }
}
