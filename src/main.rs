//! trial
use demo_multiplexer::engine::ContainerEngine as _;
use demo_multiplexer::*;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let name = &args[2];
    let state = Path::new("/var/lib/demo-multiplexer");
    let say = |s: &str| eprintln!("- {s}");
    let (folder, recipe) = golden::recipe::Recipe::load(name, Path::new("/src/podman"))?;
    let catalog = snapshot::catalog::Catalog::open(&state.join("snapshots"))?;
    match args[1].as_str() {
        "snap" => {
            let src = std::env::var("PRESTASHOP_SRC").unwrap_or_default();
            let t = Instant::now();
            let image = golden::build::build(
                &golden::build::Build {
                    folder: &folder,
                    recipe: &recipe,
                    source_setting: &src,
                    state_dir: state,
                },
                &say,
            )
            .await?;
            println!("{image:?} {:?}", t.elapsed());
            let t = Instant::now();
            let m = checkpoint::create(&recipe, &image, &catalog, state, &say).await?;
            println!("{} {:?} {:?}", m.id, m.archives, t.elapsed());
        }
        "restore" => {
            let n: usize = args[3].parse()?;
            let m = catalog.newest(&recipe.name)?.unwrap();
            let t = Instant::now();
            let facts = snapshot::prepare::host_facts().await?;
            let p =
                snapshot::prepare::prepare(&catalog, &m.id, &facts, state, Duration::from_secs(60)).await?;
            println!("prepared {:?}", t.elapsed());
            let values = config::collect(Path::new("/"), Default::default())?;
            let config = Arc::new(config::Config::check(&values)?);
            let net = host::net::Network::open("dmux0", config.bridge_subnet).await?;
            let cg = host::cgroup::Parent::open("demo-multiplexer")?;
            println!("controllers {:?}", cg.controllers());
            let slots = Arc::new(host::slots::Slots::new(net, cg, state, 4)?);
            let eng = engine::criu::CriuEngine::new(p.source, slots.clone())?;
            let eng = Arc::new(if std::env::var("TRACE").is_ok() { eng.traced() } else { eng });
            let supply = Arc::new(identity::Supply::start()?);
            let maker = restore::Maker::new(eng.clone(), Arc::new(m.recipe.clone()), config, supply);
            for _ in 0..n {
                slots.fill().await?;
                let id = eng.next_id();
                let t = Instant::now();
                match maker.make(&id, restore::FirstPage::Fetched).await {
                    Ok(made) => {
                        println!("{:?} {:?}", t.elapsed(), made.phases);
                        if args.len() > 4 {
                            println!(
                                "{} {} {}",
                                made.container.address,
                                made.access.admin_email,
                                secrecy::ExposeSecret::expose_secret(&made.access.admin_password)
                            );
                            continue;
                        }
                        let t = Instant::now();
                        if std::env::var("TRACE").is_ok() {
                            std::fs::copy(
                                slots.dirs(&id).criu.join("restore.log"),
                                "/src/target/restore.log",
                            )?;
                        }
                        eng.destroy(&id, Some(&made.container)).await?;
                        println!("destroyed {:?}", t.elapsed());
                    }
                    Err(e) => println!("{}", error::Chain(&e)),
                }
            }
            for (s, e) in slots.drain().await {
                println!("{s} {e}");
            }
        }
        _ => {}
    }
    Ok(())
}
