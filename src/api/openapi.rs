//! The OpenAPI document: what the handlers' own annotations do not say, and
//! where it is served.
//!
//! A handler declares its parameters, bodies and statuses; [`finish`] adds what
//! is the same everywhere: the problem body of every error, the headers of every
//! answer, and how [`access`] refuses. `tests/contract.rs` holds the document against the running daemon.

use std::sync::LazyLock;

use axum::response::IntoResponse;
use bytes::Bytes;
use http::header;
use serde_json::json;
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, Header, HeaderBuilder, OpenApi, Ref, RefOr, Required, Response};
use utoipa::{OpenApi as _, PartialSchema, ToSchema};

use super::access;
use super::dto::{CountdownEvent, ProblemAnswer, StatusEvent};
use super::problem::Problem;
use crate::{instance, promote};

const PROBLEM: &str = "application/problem+json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "demo-multiplexer",
        description = "A whole demo shop per visitor, restored from a snapshot in a blink.\n\n\
            Errors are `application/problem+json`. A client may send an `X-Request-Id` of up to 64 \
            letters, digits, `-`, `_` and `.`; every answer has one, and so has the log."
    ),
    tags(
        (name = "demo", description = "Instances and their visitors"),
        (name = "saved", description = "Shops that their visitors have kept"),
        (name = "pool", description = "What is kept ready"),
        (name = "snapshots", description = "What the pool is restored from"),
        (name = "limits", description = "Who acquires how often"),
        (name = "health", description = "For whoever watches the daemon"),
        (name = "document", description = "This document")
    ),
    components(schemas(ProblemAnswer<'static>, StatusEvent<'static>, CountdownEvent<'static>))
)]
struct Head;

/// The document without its paths.
pub(super) fn head() -> OpenApi {
    Head::openapi()
}

/// Adds to every operation what all have in common.
pub(super) fn finish(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            add_refusals(path, operation);
            finish_operation(operation);
        }
    }
    document
}

/// What a handler does not know of: its caller was refused before it.
fn add_refusals(path: &str, operation: &mut Operation) {
    for (status, description) in access::refusals(path) {
        let refusal = || Response::new(*description).into();
        operation.responses.responses.entry((*status).to_owned()).or_insert_with(refusal);
    }
}

/// Operations whose body says what cannot be guessed; all others do without one.
const WANT_A_BODY: [&str; 2] = ["open_saved", "publish_saved"];

fn finish_operation(operation: &mut Operation) {
    let wants_one = operation.operation_id.as_ref().is_some_and(|id| WANT_A_BODY.contains(&id.as_str()));
    if let Some(RefOr::T(body)) = &mut operation.request_body
        && !wants_one
    {
        body.required = Some(Required::False);
    }
    for parameter in operation.parameters.iter_mut().flatten() {
        // One that may be left out is not one that may be null.
        if let RefOr::T(parameter) = parameter
            && let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema
        {
            schema.schema_type = not_null(&schema.schema_type);
        }
    }
    let is_acquire = operation.operation_id.as_deref() == Some("acquire");
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        finish_response(status, response);
        if is_acquire {
            finish_acquire(status, response);
        }
    }
}

/// The type that is left of "that, or null".
fn not_null(of: &SchemaType) -> SchemaType {
    match of {
        SchemaType::Array(types) => match types.iter().find(|it| **it != Type::Null) {
            Some(one) => one.clone().into(),
            None => of.clone(),
        },
        SchemaType::Type(_) | SchemaType::AnyValue => of.clone(),
    }
}

fn finish_response(status: &str, response: &mut Response) {
    add(response, "X-Request-Id", text("Finds this request in the log"));
    let is_error = status >= "400";
    if is_error && response.content.is_empty() {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(ProblemAnswer::name())))
            .example(example(status, &response.description))
            .build();
        response.content.insert(PROBLEM.to_owned(), content.into());
    }
    if status == "401" {
        add(
            response,
            "WWW-Authenticate",
            text("That a bearer token is taken, and what is wrong with the one shown"),
        );
    }
    if is_error && response.content.contains_key(PROBLEM) && ["429", "503"].contains(&status) {
        add(response, "Retry-After", number("Seconds after which another attempt may do"));
    }
}

/// How a client stands in the limits, and what it does with what it got.
fn finish_acquire(status: &str, response: &mut Response) {
    if !["200", "201", "429"].contains(&status) {
        return;
    }
    add(response, "RateLimit-Limit", number("Instances that one client may have in the tightest window"));
    add(response, "RateLimit-Remaining", number("How many of them are left"));
    add(response, "RateLimit-Reset", number("Seconds until there are more"));
    add(response, "RateLimit-Policy", text("Every window: its quota (q) and its length in seconds (w)"));
    add(response, "RateLimit", text("Every window: what remains (r) and seconds until there is more (t)"));
    if status != "429" {
        for operation in ["show_instance", "extend_instance", "watch_instance", "release_instance"] {
            let link = LinkBuilder::new().operation_id(operation).parameter("id", "$response.body#/id");
            response.links.insert(operation.to_owned(), link.build().into());
        }
    }
}

fn add(response: &mut Response, name: &str, header: Header) {
    response.headers.insert(name.to_owned(), header.into());
}

fn text(description: &str) -> Header {
    described(Type::String, description)
}

fn number(description: &str) -> Header {
    described(Type::Integer, description)
}

fn described(kind: Type, description: &str) -> Header {
    HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(kind)))
        .description(Some(description))
        .build()
}

fn example(status: &str, description: &str) -> Option<serde_json::Value> {
    let problem = Problem::example(status.parse().ok()?, description)?;
    Some(json!(problem.answer("3f9c1b2a7d60e854")))
}

/// Serves the document.
#[utoipa::path(get, path = "/api/openapi.json", tag = "document", operation_id = "openapi", responses(
    (status = 200, description = "This document", body = Object)
))]
pub(super) async fn json() -> impl IntoResponse {
    static DOCUMENT: LazyLock<Bytes> =
        LazyLock::new(|| Bytes::from(serde_json::to_vec(&super::document()).unwrap_or_default()));
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}

/// Serves a page that shows the document; it needs nothing from elsewhere.
#[utoipa::path(get, path = "/api/docs", tag = "document", operation_id = "docs", responses(
    (status = 200, description = "A page for people", body = String, content_type = "text/html")
))]
pub(super) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; \
                  style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)];
    (headers, include_str!("docs.html"))
}

/// Names a schema that is made from the program's own words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $words:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name;

        impl ToSchema for $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let words: Vec<&str> = $words;
                ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
            }
        }
    };
}

words!(
    /// An instance's state.
    State,
    instance::State::ALL.map(instance::State::as_str).to_vec()
);

words!(
    /// The same, or that nothing of it is left.
    Status,
    instance::State::ALL.map(instance::State::as_str).into_iter().chain(["gone"]).collect()
);

words!(
    /// Where an instance came from.
    Source,
    instance::Source::ALL.map(instance::Source::as_str).to_vec()
);

words!(
    /// What a task does.
    TaskKind,
    promote::Kind::ALL.map(promote::Kind::as_str).to_vec()
);

words!(
    /// How a task stands.
    TaskState,
    promote::Outcome::WORDS.to_vec()
);

/// A snapshot's name.
#[derive(Debug)]
pub(super) struct SnapshotName;

impl ToSchema for SnapshotName {}

impl PartialSchema for SnapshotName {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[a-z0-9][a-z0-9-]{0,63}$"))
            .examples(["wordpress-20260101t000000z-1f2e"])
            .into()
    }
}

/// An instance's name.
#[derive(Debug)]
pub(super) struct Id;

impl ToSchema for Id {}

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^[a-z2-7]{12}$"))
            .examples(["4irtg5lio2z5"])
            .into()
    }
}

/// A time to live.
#[derive(Debug)]
pub(super) struct Ttl;

impl ToSchema for Ttl {}

impl PartialSchema for Ttl {
    fn schema() -> RefOr<Schema> {
        let seconds = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .minimum(Some(1))
            .description(Some("Seconds"))
            .examples([1800]);
        let words = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .description(Some("A time in words, or an ISO 8601 duration"))
            .examples(["30m", "1h 30m", "PT2H"]);
        OneOfBuilder::new().item(seconds).item(words).into()
    }
}
