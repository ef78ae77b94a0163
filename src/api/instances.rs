//! `GET /api/v1/demo`: all instances, for the operator: searched, filtered,
//! sorted. What is shown of each is decided here and is pure.

use std::cmp::Ordering;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::ApiState;
use super::dto::InstanceAnswer;
use super::extract::Asked;
use super::problem::Problem;
use crate::instance::{Instance, State as InstanceState};

/// The longest list that is answered at once.
const LIMIT_MAX: usize = 10_000;

/// Which of them, and in which order.
#[derive(Debug, Default, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(crate) struct Search {
    /// Part of an id, golden, snapshot, node or address.
    pub(crate) q: Option<String>,
    /// One state, or several after commas.
    #[param(
        example = "ready,assigned",
        pattern = "^ *(warming|ready|assigned|expired|hibernated|failed)?( *, *(warming|ready|assigned|expired|hibernated|failed)?)* *$"
    )]
    pub(crate) state: Option<String>,
    /// Of one golden.
    pub(crate) golden: Option<String>,
    /// `created`, `expires`, `id`, `golden` or `state`; with `-` before it the other way round.
    #[param(pattern = "^-?(created|expires|id|golden|state)$")]
    pub(crate) sort: Option<String>,
    /// So many at most.
    #[param(minimum = 1, maximum = 10000)]
    pub(crate) limit: Option<usize>,
}

/// What it is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Created,
    Expires,
    Id,
    Golden,
    State,
}

/// A checked search.
#[derive(Debug)]
struct Wish {
    words: String,
    states: Vec<InstanceState>,
    golden: Option<String>,
    by: By,
    backwards: bool,
    limit: usize,
}

impl Search {
    fn check(self) -> Result<Wish, String> {
        let states = self.state.as_deref().unwrap_or_default();
        let states = states.split(',').map(|word| word.trim_matches(' ')).filter(|word| !word.is_empty());
        let states: Result<Vec<InstanceState>, String> = states.map(state).collect();
        let sort = self.sort.as_deref().unwrap_or("created");
        let (backwards, by) = match sort.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, sort),
        };
        let by = match by {
            "created" => By::Created,
            "expires" => By::Expires,
            "id" => By::Id,
            "golden" => By::Golden,
            "state" => By::State,
            _ => return Err("sort is one of created, expires, id, golden, state".into()),
        };
        let limit = self.limit.unwrap_or(LIMIT_MAX);
        if limit == 0 || limit > LIMIT_MAX {
            return Err(format!("limit is 1 to {LIMIT_MAX}"));
        }
        Ok(Wish {
            words: self.q.unwrap_or_default().trim().to_lowercase(),
            states: states?,
            golden: self.golden.filter(|golden| !golden.is_empty()),
            by,
            backwards,
            limit,
        })
    }
}

fn state(word: &str) -> Result<InstanceState, String> {
    let known = || InstanceState::ALL.map(InstanceState::as_str).join(", ");
    let found = InstanceState::ALL.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| format!("state is one or several of {}", known()))
}

impl Wish {
    fn takes(&self, instance: &Instance) -> bool {
        (self.states.is_empty() || self.states.contains(&instance.state))
            && self.golden.as_deref().is_none_or(|golden| instance.golden.as_str() == golden)
            && (self.words.is_empty() || self.is_in(instance))
    }

    fn is_in(&self, instance: &Instance) -> bool {
        let snapshot = instance.snapshot.as_ref().map(ToString::to_string).unwrap_or_default();
        let url = instance.access.as_ref().map(|access| access.url.clone()).unwrap_or_default();
        [instance.id.to_string(), instance.golden.to_string(), instance.node.to_string(), snapshot, url]
            .iter()
            .any(|text| text.to_lowercase().contains(&self.words))
    }

    fn order(&self, one: &Instance, other: &Instance) -> Ordering {
        let by = match self.by {
            By::Created => one.created_at.cmp(&other.created_at),
            // What never ends comes last.
            By::Expires => {
                let end = |it: &Instance| it.expires_at.unwrap_or(Timestamp::MAX);
                end(one).cmp(&end(other))
            }
            By::Id => one.id.cmp(&other.id),
            By::Golden => one.golden.cmp(&other.golden),
            By::State => one.state.as_str().cmp(other.state.as_str()),
        };
        let by = if self.backwards { by.reverse() } else { by };
        by.then_with(|| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)))
    }

    /// Those wanted, and how many there would be without the limit.
    fn choose(&self, mut all: Vec<Arc<Instance>>) -> (Vec<Arc<Instance>>, usize) {
        all.retain(|instance| self.takes(instance));
        all.sort_by(|one, other| self.order(one, other));
        let total = all.len();
        all.truncate(self.limit);
        (all, total)
    }
}

/// The instances that were asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ListAnswer {
    instances: Vec<ListedInstance>,
    /// How many there are without the limit.
    total: usize,
}

/// One of them.
#[derive(Debug, Serialize, ToSchema)]
struct ListedInstance {
    #[serde(flatten)]
    instance: InstanceAnswer,
    /// Opens a shell in it, typed on its host.
    shell_command: String,
}

/// What opens a shell in an instance, on the host that it runs on.
pub(crate) fn shell_command(instance: &Instance) -> String {
    format!("demo-multiplexer exec {} -- sh", instance.id)
}

/// Finds what a search asks for, with the number without its limit.
///
/// # Errors
/// The search is not valid, or the store.
pub(crate) async fn find(api: &ApiState, search: Search) -> Result<(Vec<Arc<Instance>>, usize), Problem> {
    let wish = search.check().map_err(Problem::invalid)?;
    Ok(wish.choose(api.provisioner.lifecycle().store().list().await?))
}

/// Lists all instances, for the operator.
///
/// Whoever knows an instance's name can end it.
#[utoipa::path(get, path = "/api/v1/demo", tag = "demo", operation_id = "list_instances", params(Search), responses(
    (status = 200, description = "Those asked for; all, the oldest first, when nothing was", body = ListAnswer),
    (status = 400, description = "The query is not valid"),
    (status = 500, description = "A record cannot be read"),
    (status = 503, description = "The store does not answer")
))]
pub(super) async fn list(
    State(api): State<ApiState>,
    Asked(search): Asked<Search>,
) -> Result<Json<ListAnswer>, Problem> {
    let now = Timestamp::now();
    let (found, total) = find(&api, search).await?;
    let listed = |instance: &Arc<Instance>| ListedInstance {
        instance: InstanceAnswer::of(instance, now),
        shell_command: shell_command(instance),
    };
    Ok(Json(ListAnswer { instances: found.iter().map(listed).collect(), total }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instances() -> Vec<Arc<Instance>> {
        let one = |id: &str, golden: &str, state, created, expires: Option<i64>| {
            let at = |second| Timestamp::from_second(second).unwrap();
            let (id, golden) = (id.parse().unwrap(), golden.parse().unwrap());
            let mut it = Instance::warming(id, golden, "here".parse().unwrap(), at(created));
            it.state = state;
            it.expires_at = expires.map(at);
            Arc::new(it)
        };
        vec![
            one("bbbbbbbbbbbb", "shop", InstanceState::Ready, 2, None),
            one("aaaaaaaaaaaa", "shop", InstanceState::Assigned, 1, Some(90)),
            one("cccccccccccc", "other", InstanceState::Assigned, 3, Some(50)),
        ]
    }

    fn found(search: Search) -> (String, usize) {
        let (chosen, total) = search.check().unwrap().choose(instances());
        (chosen.iter().map(|it| it.id.as_str().chars().next().unwrap()).collect(), total)
    }

    fn text(of: &str) -> Option<String> {
        Some(of.into())
    }

    #[test]
    fn without_a_search_all_are_told_the_oldest_first() {
        assert_eq!(found(Search::default()), ("abc".into(), 3));
    }

    #[test]
    fn each_parameter_does_what_it_says() {
        let nothing = Search::default;
        assert_eq!(found(Search { q: text(" CCC "), ..nothing() }).0, "c");
        assert_eq!(found(Search { q: text("here"), ..nothing() }).0, "abc");
        assert_eq!(found(Search { golden: text("shop"), ..nothing() }).0, "ab");
        assert_eq!(found(Search { state: text("assigned"), ..nothing() }).0, "ac");
        assert_eq!(found(Search { state: text("ready, assigned"), ..nothing() }).0, "abc");
        assert_eq!(found(Search { sort: text("-id"), ..nothing() }).0, "cba");
        assert_eq!(found(Search { sort: text("expires"), ..nothing() }).0, "cab");
        assert_eq!(found(Search { sort: text("golden"), ..nothing() }).0, "cab");
        assert_eq!(found(Search { sort: text("-created"), limit: Some(2), ..nothing() }), ("cb".into(), 3));
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_would() {
        let refused = |search: Search| search.check().unwrap_err();
        assert!(refused(Search { state: text("sleepy"), ..Search::default() }).contains("hibernated"));
        assert!(refused(Search { sort: text("size"), ..Search::default() }).contains("created, expires"));
        assert!(refused(Search { limit: Some(0), ..Search::default() }).contains("1 to 10000"));
    }
}
