//! What is asked of a Docker engine about images: find, import, build.
//!
//! A build goes through the engine's own builder, which needs neither BuildKit
//! nor a client program: a tar of the context goes in, lines of JSON come out.

use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode, header};
use serde_json::{Value, json};

use super::api::{Docker, DockerError};

/// A build installs a shop: minutes on a small host.
const BUILD_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// One build.
#[derive(Debug)]
pub struct BuildSpec<'a> {
    /// A tar archive of the context.
    pub context: &'a Path,
    /// The Containerfile's path in it.
    pub file: &'a str,
    /// The name of what is built.
    pub tag: &'a str,
    /// Build arguments.
    pub args: &'a [(&'a str, &'a str)],
}

impl Docker {
    /// An image's id by name or id; none when it is not there.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn image_id(&self, name: &str) -> Result<Option<String>, DockerError> {
        let doing = "inspect an image";
        let request = self.request(Method::GET, &format!("/images/{name}/json")).await?;
        let response = match self.send(doing, request).await {
            Err(error) if error.is_absent() => return Ok(None),
            other => other?,
        };
        let image: Value = self.answer(doing, response).await?;
        Ok(image["Id"].as_str().map(str::to_owned))
    }

    /// Name and id of the newest image of a repository; none when it has none.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn newest_image(&self, repository: &str) -> Result<Option<(String, String)>, DockerError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            id: String,
            created: i64,
            #[serde(default)]
            repo_tags: Vec<String>,
        }
        let doing = "list images";
        let filters = json!({ "reference": [repository] }).to_string();
        let request = self.request(Method::GET, "/images/json").await?;
        let request = request.query(&[("filters", filters.as_str())]);
        let listed: Vec<Listed> = self.answer(doing, self.send(doing, request).await?).await?;
        let newest = listed.into_iter().max_by_key(|image| image.created);
        let of_repository =
            |tag: &String| tag.rsplit_once(':').is_some_and(|(name, _)| name.ends_with(repository));
        Ok(newest.and_then(|image| {
            let name = image.repo_tags.into_iter().find(of_repository)?;
            Some((name, image.id))
        }))
    }

    /// Makes an image of a tar archive of a root file system.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn import_image(&self, archive: &Path, name: &str) -> Result<(), DockerError> {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        let request = self.request(Method::POST, "/images/create").await?;
        let request = request.query(&[("fromSrc", "-"), ("repo", repository), ("tag", tag)]);
        self.stream("import an image", request, archive, &mut |_| {}).await
    }

    /// Builds an image without a network; `told` gets what the builder prints.
    ///
    /// # Errors
    /// [`DockerError::Refused`] with the builder's last words.
    pub async fn build_image(
        &self,
        spec: &BuildSpec<'_>,
        told: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), DockerError> {
        let args: serde_json::Map<String, Value> =
            spec.args.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let args = Value::Object(args).to_string();
        let request = self.request(Method::POST, "/build").await?.query(&[
            // The first builder: the other one wants a session of its client's.
            ("version", "1"),
            ("dockerfile", spec.file),
            ("t", spec.tag),
            ("buildargs", args.as_str()),
            ("networkmode", "none"),
            // The name says what the image is made of; a cache says less.
            ("nocache", "1"),
            ("rm", "1"),
            ("forcerm", "1"),
        ]);
        self.stream("build an image", request, spec.context, told).await
    }

    /// Removes an image's name; absent is fine.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn remove_image(&self, name: &str) -> Result<(), DockerError> {
        let request = self.request(Method::DELETE, &format!("/images/{name}")).await?;
        match self.send("remove an image", request).await {
            Err(error) if !error.is_absent() => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends a tar archive and reads the lines of JSON that come back, one of
    /// which may say that it failed, after a status that says it did not.
    async fn stream(
        &self,
        doing: &'static str,
        request: reqwest::RequestBuilder,
        archive: &Path,
        told: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), DockerError> {
        let file = tokio::fs::File::open(archive).await.map_err(DockerError::Input)?;
        let request = request.timeout(BUILD_DEADLINE).header(header::CONTENT_TYPE, "application/x-tar");
        let mut response = self.send(doing, request.body(file)).await?;
        let mut lines = Lines::default();
        while let Some(chunk) =
            response.chunk().await.map_err(|source| DockerError::Exchange { doing, source })?
        {
            for line in lines.push(&chunk) {
                if let Some(said) = line["error"].as_str() {
                    return Err(DockerError::Refused {
                        doing,
                        status: StatusCode::OK,
                        said: said.to_owned(),
                    });
                }
                if let Some(text) = line["stream"].as_str() {
                    told(text);
                }
            }
        }
        Ok(())
    }
}

/// Puts lines of JSON together from what comes in pieces.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Adds a piece and answers the values whose lines are whole.
    fn push(&mut self, piece: &[u8]) -> Vec<Value> {
        self.0.extend_from_slice(piece);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let whole: Vec<u8> = self.0.drain(..=end).collect();
        whole.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        assert!(lines.push(b"{\"stream\":\"Step").is_empty());
        let found = lines.push(b" 1\"}\r\n{\"error\":\"no\"}\n{");
        assert_eq!(found, [json!({"stream": "Step 1"}), json!({"error": "no"})]);
    }
}
