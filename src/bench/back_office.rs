//! The back office of a shop that was just handed out: its first page and its tenth.
//!
//! As a visitor comes there: by the one-click link of an acquire from the pool, with the
//! cookies that it sets, through the built-in proxy. What is timed is one page alone,
//! without what it embeds; the tenth is the same page once more.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;

use super::report::Spread;
use super::service::Service;

/// A login is two or three of them.
const REDIRECTS: usize = 8;

/// Which page the first one is compared with.
const LATER: usize = 10;

/// The pages' times.
#[derive(Debug, Clone, Serialize)]
pub struct BackOffice {
    /// How many shops.
    pub n: usize,
    /// From the one-click link to the first page, redirects and that page included.
    pub login_ms: Spread,
    /// The first page.
    pub first_ms: Spread,
    /// The tenth.
    pub tenth_ms: Spread,
}

/// One shop's.
#[derive(Debug, Clone, Copy)]
pub struct Visit {
    login: Duration,
    first: Duration,
    tenth: Duration,
}

impl BackOffice {
    /// Sums visits up; none when there are none.
    #[must_use]
    pub fn of(visits: &[Visit]) -> Option<Self> {
        let spread = |of: fn(&Visit) -> Duration| Spread::of(&visits.iter().map(of).collect::<Vec<_>>());
        Some(Self {
            n: visits.len(),
            login_ms: spread(|visit| visit.login)?,
            first_ms: spread(|visit| visit.first)?,
            tenth_ms: spread(|visit| visit.tenth)?,
        })
    }

    /// Rows of its table.
    #[must_use]
    pub fn rows(&self) -> Vec<[String; 4]> {
        let rows = [
            ("one-click link to page", self.login_ms),
            ("first page", self.first_ms),
            ("tenth page", self.tenth_ms),
        ];
        let ms = |value: f64| format!("{value:.1}");
        rows.map(|(what, it)| [what.to_owned(), self.n.to_string(), ms(it.median), ms(it.p95)]).into()
    }
}

/// What a browser remembers of one shop.
struct Visitor<'a> {
    service: &'a Service,
    host: String,
    cookies: Vec<(String, String)>,
}

impl Service {
    /// Acquires a shop, goes into its back office and releases it; none when the golden
    /// has no one-click link.
    ///
    /// # Errors
    /// When the service refuses, or a page is none.
    pub async fn back_office(&self) -> anyhow::Result<Option<Visit>> {
        let shop = self.call(Method::POST, "/api/v1/demo/acquire").await?;
        let id = shop["id"].as_str().context("an acquire answers an id")?;
        let visit = match shop["admin_login_url"].as_str() {
            Some(link) => Some(self.visit(id, link).await),
            None => None,
        };
        self.call(Method::DELETE, &format!("/api/v1/demo/{id}")).await?;
        visit.transpose()
    }

    async fn visit(&self, id: &str, link: &str) -> anyhow::Result<Visit> {
        let mut visitor = Visitor { service: self, host: self.host_of(id), cookies: Vec::new() };
        let mut path = path_of(link)?;
        let login = Instant::now();
        for _ in 0..REDIRECTS {
            let begun = Instant::now();
            let (status, location) = visitor.get(&path).await?;
            let first = begun.elapsed();
            match (status, location) {
                (StatusCode::OK, _) => {
                    let login = login.elapsed();
                    return Ok(Visit { login, first, tenth: visitor.later(&path).await? });
                }
                (_, Some(location)) => path = joined(&path, &location)?,
                _ => bail!("{path} answers {status}"),
            }
        }
        bail!("the one-click link leads nowhere: {REDIRECTS} redirects, the last to {path}")
    }
}

impl Visitor<'_> {
    async fn later(&mut self, path: &str) -> anyhow::Result<Duration> {
        let mut took = Duration::ZERO;
        for _ in 1..LATER {
            let begun = Instant::now();
            let (status, _) = self.get(path).await?;
            took = begun.elapsed();
            anyhow::ensure!(status == StatusCode::OK, "{path} answers {status} when it is asked for again");
        }
        Ok(took)
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<(StatusCode, Option<String>)> {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = Request::get(self.service.uri(path))
            .header(header::HOST, &self.host)
            .header(header::COOKIE, cookies.join("; "))
            .body(Full::new(Bytes::new()))?;
        let response = self.service.send(request).await?;
        for cookie in response.headers().get_all(header::SET_COOKIE) {
            self.remember(cookie.to_str()?);
        }
        let location = response.headers().get(header::LOCATION).map(|it| it.to_str().map(str::to_owned));
        let (status, location) = (response.status(), location.transpose()?);
        response.into_body().collect().await?;
        Ok((status, location))
    }

    fn remember(&mut self, cookie: &str) {
        let pair = cookie.split(';').next().unwrap_or_default();
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        self.cookies.retain(|(known, _)| known != name);
        if value != "deleted" {
            self.cookies.push((name.to_owned(), value.to_owned()));
        }
    }
}

/// A link's path and query.
fn path_of(link: &str) -> anyhow::Result<String> {
    let uri: Uri = link.parse().with_context(|| format!("{link:?} is no address"))?;
    Ok(uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string))
}

/// Where a redirect leads, seen from the page that it came from.
fn joined(from: &str, location: &str) -> anyhow::Result<String> {
    if location.contains("://") || location.starts_with('/') {
        return path_of(location);
    }
    let path = from.split('?').next().unwrap_or_default();
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    path_of(&format!("{directory}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_where_a_browser_goes() {
        assert_eq!(joined("/a/b?c", "http://x.example:8080/d/?e=1").unwrap(), "/d/?e=1");
        assert_eq!(joined("/a/b?c/d", "index.php?e=1").unwrap(), "/a/index.php?e=1");
        assert_eq!(joined("/a/", "/z").unwrap(), "/z");
        assert!(joined("/a", "http://[").is_err());
    }
}
