//! What the routes look like in Caddy's configuration. Pure.
//!
//! The container maps host names to addresses, one entry an instance, and puts
//! the address into a variable of the request; the Caddyfile's one
//! `reverse_proxy` reads it. Of the forms that were tried with 1,000 instances,
//! a proxy for each costs Caddy seven times as much at each change, a route for
//! each twice as much and 0.7 ms more at each request.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::id::{InstanceId, NodeName};
use crate::route::Targets;

/// The servers' place in the configuration.
pub(super) const SERVERS: &str = "/config/apps/http/servers";

/// Where the admin API's own address stands.
pub(super) const ADMIN_LISTEN: &str = "/config/admin/listen";

/// The variable that the Caddyfile reads.
const VARIABLE: &str = "shop";

/// The form of one daemon's routes.
#[derive(Debug)]
pub(super) struct Shape {
    /// The container's `@id`.
    container: String,
    base_domain: String,
}

impl Shape {
    pub(super) fn new(node: &NodeName, base_domain: &str) -> Self {
        Self { container: format!("dmux-{node}"), base_domain: base_domain.to_owned() }
    }

    pub(super) fn base_domain(&self) -> &str {
        &self.base_domain
    }

    /// Where the container is found, wherever it stands.
    pub(super) fn container_path(&self) -> String {
        format!("/id/{}", self.container)
    }

    /// An instance's `@id`. No node name has a `_`, so no two are the same.
    fn route_id(&self, id: &InstanceId) -> String {
        format!("{}_{id}", self.container)
    }

    /// The container with these routes.
    ///
    /// Not terminal: what follows is the site that reads the variable. A host
    /// that is not here keeps what another daemon's container has said of it.
    pub(super) fn container(&self, routes: &Targets) -> Value {
        let entries: Vec<Value> = routes
            .iter()
            .map(|(id, upstream)| {
                json!({
                    "@id": self.route_id(id),
                    "input": format!("{id}.{}", self.base_domain),
                    "outputs": [upstream.to_string()],
                })
            })
            .collect();
        // Two maps with one placeholder would hide each other.
        let placeholder = format!("{{{}}}", self.container);
        json!({
            "@id": self.container,
            "match": [{ "host": [self.wildcard()] }],
            "handle": [
                {
                    "handler": "map",
                    "source": "{http.request.host}",
                    "destinations": [placeholder],
                    "mappings": entries,
                    "defaults": [format!("{{http.vars.{VARIABLE}}}")],
                },
                { "handler": "vars", VARIABLE: placeholder },
            ],
        })
    }

    fn wildcard(&self) -> String {
        format!("*.{}", self.base_domain)
    }

    /// The routes in a container; what does not look like one is left out.
    pub(super) fn targets(&self, container: &Value) -> Targets {
        self.routes_in(container)
            .filter_map(|(id, route)| {
                let upstream: SocketAddr = route["outputs"][0].as_str()?.parse().ok()?;
                Some((id, upstream))
            })
            .collect()
    }

    fn routes_in<'a>(&'a self, container: &'a Value) -> impl Iterator<Item = (InstanceId, &'a Value)> {
        let routes = container["handle"][0]["mappings"].as_array();
        routes.into_iter().flatten().filter_map(|route| {
            let own = route["@id"].as_str()?.strip_prefix(&self.container)?.strip_prefix('_')?;
            Some((own.parse().ok()?, route))
        })
    }

    /// How many routes are missing, too many or not as wanted.
    pub(super) fn differences(&self, found: &Value, wanted: &Targets) -> usize {
        let expected = self.container(wanted);
        let (found, expected): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (self.routes_in(found).collect(), self.routes_in(&expected).collect());
        let wrong = expected.iter().filter(|(id, route)| found.get(*id) != Some(*route)).count();
        wrong + found.keys().filter(|id| !expected.contains_key(*id)).count()
    }

    /// Where the container is to be inserted: in front of everything in the
    /// server whose site is `*.BASE_DOMAIN`. None when there is no such server.
    pub(super) fn place(&self, servers: &Value) -> Option<String> {
        let wildcard = self.wildcard();
        let is_site = |route: &Value| {
            let matchers = route["match"].as_array().into_iter().flatten();
            let mut hosts = matchers.filter_map(|matcher| matcher["host"].as_array()).flatten();
            // Not another daemon's container, which matches the same hosts.
            let foreign = route["@id"].as_str().is_some_and(|id| id.starts_with("dmux-"));
            !foreign && hosts.any(|host| host.as_str().is_some_and(|it| it.eq_ignore_ascii_case(&wildcard)))
        };
        let (name, _) = servers.as_object()?.iter().find(|(_, server)| {
            server["routes"].as_array().is_some_and(|routes| routes.iter().any(is_site))
        })?;
        Some(format!("{SERVERS}/{name}/routes/0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape::new(&"node-1.example".parse().unwrap(), "demo.example")
    }

    fn id(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    fn two() -> Targets {
        let upstream = |n| SocketAddr::from(([10, 77, 0, n], 80));
        [(id("aaaaaaaaaaaa"), upstream(2)), (id("bbbbbbbbbbbb"), upstream(3))].into()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let container = shape().container(&two());
        assert_eq!(shape().targets(&container), two());
        assert_eq!(shape().targets(&Value::Null), Targets::new());
        let first = &container["handle"][0]["mappings"][0];
        assert_eq!(first["@id"], "dmux-node-1.example_aaaaaaaaaaaa");
        assert_eq!(first["input"], "aaaaaaaaaaaa.demo.example");
    }

    #[test]
    fn each_wrong_route_counts_once() {
        let (shape, wanted) = (shape(), two());
        assert_eq!(shape.differences(&shape.container(&wanted), &wanted), 0);
        assert_eq!(shape.differences(&Value::Null, &wanted), 2, "all are missing");
        let mut other = wanted.clone();
        other.insert(id("cccccccccccc"), SocketAddr::from(([10, 77, 0, 4], 80)));
        other.insert(id("aaaaaaaaaaaa"), SocketAddr::from(([10, 77, 0, 9], 80)));
        assert_eq!(shape.differences(&shape.container(&other), &wanted), 2, "one too many, one changed");
    }

    #[test]
    fn the_container_goes_in_front_of_the_domains_own_site() {
        let route = |hosts: Value| json!({ "match": [{ "host": hosts }], "terminal": true });
        let servers = json!({
            "srv0": { "listen": [":80"], "routes": [{ "handle": [] }] },
            "srv1": { "listen": [":8443"], "routes": [route(json!(["*.other.example"]))] },
            "srv2": { "routes": [route(json!(["x.org"])), route(json!(["demo.example", "*.Demo.example"]))] },
        });
        assert_eq!(shape().place(&servers).as_deref(), Some("/config/apps/http/servers/srv2/routes/0"));
        assert_eq!(shape().place(&Value::Null), None);
        let leftover = json!({ "srv0": { "routes": [shape().container(&two())] } });
        assert_eq!(shape().place(&leftover), None, "a container is no site");
    }
}
