//! `/api/v1/limits`: which clients are near a limit, and whose count is cleared.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::dto::whole_ms;
use super::extract::PathOf;
use super::problem::Problem;
use crate::provision::limits::Span;
use crate::provision::standing::Seen;

/// Clients that are shown: those nearest to a limit.
const SHOWN: usize = 200;

/// The longest name of a client: a token's name, or an address.
const NAME_MAX: usize = 128;

/// The limits and who is near them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitsAnswer {
    /// RATE_LIMIT_HOURLY; 0 is none.
    hourly: u32,
    /// RATE_LIMIT_DAILY; 0 is none.
    daily: u32,
    /// Those that this daemon has seen, the nearest to a limit first; 200 at most.
    clients: Vec<ClientAnswer>,
}

/// One client.
#[derive(Debug, Serialize, ToSchema)]
struct ClientAnswer {
    /// `ip:` and its address or network, or `token:` and the token's name.
    #[schema(examples("ip:203.0.113.5"))]
    client: String,
    /// When it asked last.
    #[schema(value_type = String, format = DateTime)]
    seen_at: Timestamp,
    /// What was left then, in the hour.
    #[schema(required)]
    hour_left: Option<u32>,
    /// What was left then, in the day.
    #[schema(required)]
    day_left: Option<u32>,
    /// Acquires that were refused since this daemon knows it.
    refused: u64,
    /// Whether it would be refused now.
    limited: bool,
}

impl ClientAnswer {
    fn of(seen: &Seen, now: Timestamp) -> Self {
        let left = |span| {
            let standing = seen.standings.iter().find(|standing| standing.span == span);
            standing.map(|standing| standing.allowance.remaining)
        };
        Self {
            client: seen.client.as_str().to_owned(),
            seen_at: whole_ms(seen.at),
            hour_left: left(Span::Hour),
            day_left: left(Span::Day),
            refused: seen.refused,
            limited: seen.left_at(now) <= 0.0,
        }
    }
}

/// Tells the limits, and the clients that are near them.
#[utoipa::path(get, path = "/api/v1/limits", tag = "limits", operation_id = "limits", responses(
    (status = 200, description = "As far as this daemon has seen", body = LimitsAnswer)
))]
pub(super) async fn show(State(api): State<ApiState>) -> Json<LimitsAnswer> {
    let (now, limits) = (Timestamp::now(), api.provisioner.terms().limits);
    let seen = api.provisioner.clients().all(now);
    Json(LimitsAnswer {
        hourly: limits.hourly,
        daily: limits.daily,
        clients: seen.iter().take(SHOWN).map(|seen| ClientAnswer::of(seen, now)).collect(),
    })
}

/// Has a client begin anew: what was counted of it is forgotten.
///
/// One that is not known is fine.
#[utoipa::path(
    delete, path = "/api/v1/limits/{client}", tag = "limits", operation_id = "clear_limit",
    params(("client" = String, Path, description = "As the list has it, such as ip:203.0.113.5", max_length = 128)),
    responses(
        (status = 204, description = "Nothing is counted of it"),
        (status = 400, description = "No client is named so"),
        (status = 500, description = "A record cannot be read"),
        (status = 503, description = "The store does not answer"),
        (status = 507, description = "The store's disk is full")
    )
)]
pub(super) async fn clear(
    State(api): State<ApiState>,
    PathOf(client): PathOf<String>,
) -> Result<StatusCode, Problem> {
    let named = ["ip:", "token:"].iter().any(|kind| client.starts_with(kind));
    if !named || client.len() > NAME_MAX || !client.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Problem::invalid("a client is named ip:ADDRESS, ip:NETWORK/64 or token:NAME"));
    }
    api.provisioner.absolve(&client).await?;
    tracing::info!("operator has cleared a client's count");
    Ok(StatusCode::NO_CONTENT)
}
