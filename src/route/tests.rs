//! The two tables together, the router played by a second table in memory.

use super::*;

fn routes() -> (Routes, Arc<MemoryRoutes>) {
    let router = Arc::new(MemoryRoutes::default());
    let played: Arc<dyn RouteTable> = Arc::<MemoryRoutes>::clone(&router);
    (Routes::new(Some(played)), router)
}

fn upstream() -> SocketAddr {
    SocketAddr::from(([10, 77, 0, 2], 80))
}

#[tokio::test]
async fn both_tables_get_and_lose_a_route() {
    let (routes, router) = routes();
    let id = InstanceId::random();
    routes.ensure(&id, upstream());
    assert!(matches!(routes.lookup(id.as_str()), Lookup::Found(_)));
    assert!(matches!(router.lookup(id.as_str()), Lookup::Found(_)));
    routes.withdraw(&id).await.unwrap();
    assert!(routes.memory().is_empty() && router.is_empty());
}

#[tokio::test]
async fn an_ended_instance_gets_no_route_in_the_router_again() {
    let (routes, router) = routes();
    let id = InstanceId::random();
    routes.memory().remove(&id);
    routes.ensure(&id, upstream());
    assert!(router.is_empty() && routes.memory().is_empty());
}

#[tokio::test]
async fn both_tables_lead_elsewhere_and_an_ended_instance_nowhere() {
    let (routes, router) = routes();
    let id = InstanceId::random();
    let other = SocketAddr::from(([10, 77, 0, 3], 80));
    routes.ensure(&id, upstream());
    routes.replace(&id, other);
    routes.left().await.unwrap();
    for table in [routes.memory(), &router] {
        assert_eq!(table.list().await.unwrap(), [(id.clone(), other)].into());
    }
    routes.memory().remove(&id);
    routes.replace(&id, upstream());
    assert!(router.is_empty() && routes.memory().is_empty());
}

/// A router that takes nothing.
#[derive(Debug)]
struct Broken(fn() -> RouteError);

#[async_trait]
impl RouteTable for Broken {
    fn ensure(&self, _: &InstanceId, _: SocketAddr) {}

    fn replace(&self, _: &InstanceId, _: SocketAddr) {}

    fn remove(&self, _: &InstanceId) {}

    async fn settle(&self) -> Result<(), RouteError> {
        Err(self.0())
    }

    async fn list(&self) -> Result<Targets, RouteError> {
        Err(self.0())
    }

    async fn repair(&self) -> Result<usize, RouteError> {
        Err(self.0())
    }
}

#[tokio::test]
async fn only_a_router_that_is_not_there_counts_as_one_without_the_route() {
    let absent = || RouteError::Absent { address: String::new(), source: "refused".into() };
    let gone = Routes::new(Some(Arc::new(Broken(absent))));
    assert!(gone.withdraw(&InstanceId::random()).await.is_ok());
    let hung = Routes::new(Some(Arc::new(Broken(|| RouteError::Busy))));
    assert!(matches!(hung.withdraw(&InstanceId::random()).await, Err(RouteError::Busy)));
}
