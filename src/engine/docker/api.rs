//! A Docker engine, through its API on a unix socket.
//!
//! Owns the connection, the version spoken and the deadlines; what is asked of
//! containers stands here, what is asked of images in [`super::images`]. The
//! version is settled at the first call and kept: an engine that is upgraded
//! under a running daemon still speaks the older one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, StatusCode};
use reqwest::{RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::error::ErrorKind;

/// Any call but those that move images. A start takes 0.1 s; many at once on a
/// small host wait for each other.
const DEADLINE: Duration = Duration::from_secs(60);

/// The question whether it is there.
const PING_DEADLINE: Duration = Duration::from_secs(5);

/// The oldest version of the API: Docker 20.10, the first with cgroup v2.
pub const API_LEAST: (u32, u32) = (1, 41);

/// The newest that this program was tried with: Docker 28.
const API_MOST: (u32, u32) = (1, 51);

/// The Docker engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// Nobody listens there.
    #[error("no Docker engine answers at {}", .socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke, or the answer did not come in time.
    #[error("the Docker engine did not answer when asked to {doing}")]
    Exchange {
        /// What it was asked to do.
        doing: &'static str,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// It says no.
    #[error("the Docker engine refused to {doing} ({status}): {said}")]
    Refused {
        /// What it was asked to do.
        doing: &'static str,
        /// The status of its answer.
        status: StatusCode,
        /// Its message.
        said: String,
    },
    /// It is too old.
    #[error("the Docker engine speaks API {found:?}; {}.{} is needed: install Docker 20.10 or newer", API_LEAST.0, API_LEAST.1)]
    TooOld {
        /// What it speaks.
        found: String,
    },
    /// It said yes, and the container is not there.
    #[error("the container ended at once with code {code}: {said}")]
    Ended {
        /// Its exit code.
        code: i64,
        /// What Docker knows of why.
        said: String,
    },
    /// A file that is sent to it.
    #[error("cannot read what is to be sent to the Docker engine")]
    Input(#[source] std::io::Error),
}

impl DockerError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { said, .. } if said.contains("no space left on device") => ErrorKind::NoSpace,
            Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND => ErrorKind::NotFound,
            Self::Input(source) => crate::error::kind_of_io(source),
            Self::Connect { .. }
            | Self::Exchange { .. }
            | Self::Refused { .. }
            | Self::TooOld { .. }
            | Self::Ended { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether it says that the thing does not exist.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// Whether the request certainly never got there.
    #[must_use]
    pub const fn was_not_sent(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::TooOld { .. })
    }
}

/// A Docker engine's API.
#[derive(Debug)]
pub struct Docker {
    client: reqwest::Client,
    socket: PathBuf,
    /// The prefix of all paths, such as `/v1.51`.
    version: OnceCell<String>,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    /// The engine's version.
    pub version: String,
    /// The newest API it speaks.
    pub api_version: String,
}

impl Docker {
    /// A client for the engine at a unix socket; nothing is connected.
    ///
    /// # Errors
    /// [`DockerError::Connect`] when no client can be made.
    pub fn at(socket: &Path) -> Result<Self, DockerError> {
        let client = reqwest::Client::builder().unix_socket(socket).no_proxy().build();
        let client = client.map_err(|source| DockerError::Connect { socket: socket.to_owned(), source })?;
        Ok(Self { client, socket: socket.to_owned(), version: OnceCell::new() })
    }

    /// Whether the engine answers.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn ping(&self) -> Result<(), DockerError> {
        self.ask_version().await.map(|_| ())
    }

    /// What the engine says of itself, whether it is new enough or not.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn version(&self) -> Result<Version, DockerError> {
        let request = self.client.get("http://docker/version").timeout(PING_DEADLINE);
        self.answer("tell its version", self.send("tell its version", request).await?).await
    }

    async fn ask_version(&self) -> Result<String, DockerError> {
        let doing = "tell its version";
        let request = self.client.get("http://docker/_ping").timeout(PING_DEADLINE);
        let response = self.send(doing, request).await?;
        let header = response.headers().get("api-version").and_then(|value| value.to_str().ok());
        let found = header.unwrap_or_default().to_owned();
        match speak(&found) {
            Some(version) => Ok(version),
            None => Err(DockerError::TooOld { found }),
        }
    }

    /// Begins a request to a versioned path.
    pub(super) async fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, DockerError> {
        let version = self.version.get_or_try_init(|| self.ask_version()).await?;
        Ok(self.client.request(method, format!("http://docker{version}{path}")).timeout(DEADLINE))
    }

    /// Sends a request; an answer that says no is an error.
    pub(super) async fn send(
        &self,
        doing: &'static str,
        request: RequestBuilder,
    ) -> Result<Response, DockerError> {
        let response = request.send().await.map_err(|source| {
            if source.is_connect() {
                DockerError::Connect { socket: self.socket.clone(), source }
            } else {
                DockerError::Exchange { doing, source }
            }
        })?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let message = serde_json::from_str::<Value>(&text).ok();
        let message = message.as_ref().and_then(|answer| answer["message"].as_str());
        Err(DockerError::Refused { doing, status, said: message.unwrap_or(&text).trim().to_owned() })
    }

    pub(super) async fn answer<T: DeserializeOwned>(
        &self,
        doing: &'static str,
        response: Response,
    ) -> Result<T, DockerError> {
        response.json().await.map_err(|source| DockerError::Exchange { doing, source })
    }

    /// Makes a container of that name; it does not run yet.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn create(&self, name: &str, spec: &Value) -> Result<(), DockerError> {
        let request = self.request(Method::POST, "/containers/create").await?;
        self.send("create a container", request.query(&[("name", name)]).json(spec)).await.map(|_| ())
    }

    /// Starts a container and answers the host's pid of its first process.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn start(&self, name: &str) -> Result<i32, DockerError> {
        let request = self.request(Method::POST, &format!("/containers/{name}/start")).await?;
        self.send("start a container", request).await?;
        self.pid(name).await
    }

    /// The host's pid of a container's first process.
    ///
    /// # Errors
    /// [`DockerError::Ended`] when it does not run.
    pub async fn pid(&self, name: &str) -> Result<i32, DockerError> {
        let doing = "inspect a container";
        let request = self.request(Method::GET, &format!("/containers/{name}/json")).await?;
        let inspected: Value = self.answer(doing, self.send(doing, request).await?).await?;
        let state = &inspected["State"];
        match state["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) if pid > 0 => Ok(pid),
            _ => Err(DockerError::Ended {
                code: state["ExitCode"].as_i64().unwrap_or(-1),
                said: state["Error"].as_str().unwrap_or_default().to_owned(),
            }),
        }
    }

    /// Removes a container with its volumes, killing it; absent is fine.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn remove(&self, name: &str) -> Result<(), DockerError> {
        let request = self.request(Method::DELETE, &format!("/containers/{name}")).await?;
        let request = request.query(&[("force", "1"), ("v", "1")]);
        match self.send("remove a container", request).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Names of all containers that carry that label, running or not.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn names(&self, label: &str) -> Result<Vec<String>, DockerError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            names: Vec<String>,
        }
        let doing = "list containers";
        let filters = serde_json::json!({ "label": [label] }).to_string();
        let request = self.request(Method::GET, "/containers/json").await?;
        let request = request.query(&[("all", "1"), ("filters", filters.as_str())]);
        let listed: Vec<Listed> = self.answer(doing, self.send(doing, request).await?).await?;
        let names = listed.into_iter().flat_map(|container| container.names);
        Ok(names.map(|name| name.trim_start_matches('/').to_owned()).collect())
    }
}

/// The prefix of the newest version that both sides speak.
fn speak(found: &str) -> Option<String> {
    let (major, minor) = found.split_once('.')?;
    let found = (major.parse().ok()?, minor.parse().ok()?);
    if found < API_LEAST {
        return None;
    }
    let (major, minor) = found.min(API_MOST);
    Some(format!("/v{major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_both_speak_is_spoken() {
        assert_eq!(speak("1.41").as_deref(), Some("/v1.41"));
        assert_eq!(speak("1.51").as_deref(), Some("/v1.51"));
        assert_eq!(speak("1.60").as_deref(), Some("/v1.51"));
        assert_eq!(speak("1.40"), None);
        assert_eq!(speak(""), None);
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_named() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let dir = tempfile::tempdir().unwrap();
        let error = Docker::at(&dir.path().join("docker.sock")).unwrap().ping().await.unwrap_err();
        assert!(error.was_not_sent(), "{error:?}");
        assert!(error.to_string().ends_with("docker.sock"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
