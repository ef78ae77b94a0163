//! Settings: each rule by an example.

use std::path::Path;

use super::sources::collect_from;
use super::*;

pub(super) fn with(changes: &[(&str, &str)]) -> Values {
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    for (name, value) in changes {
        values.insert((*name).to_owned(), (*value).to_owned());
    }
    values
}

#[test]
fn the_defaults_are_valid() {
    let config = Config::check(&with(&[])).unwrap();
    assert_eq!(config.host_of("abc"), "abc.localhost:8080");
    let StoreAt::Embedded(path) = config.store else { panic!("{:?}", config.store) };
    assert_eq!(path, Path::new("/var/lib/demo-multiplexer/store.redb"));
}

#[test]
fn every_problem_is_reported_at_once() {
    let error = Config::check(&with(&[
        ("EGRESS_REFRESH", "10ms"),
        ("LISTEN", "nowhere"),
        ("POOL_TARGET_SIZE", "-1"),
        ("DEFAULT_TTL", "0s"),
        ("CONTAINER_MODE", "lxc"),
        ("BRIDGE_SUBNET", "10.77.0.1/16"),
        ("STORE_URL", "postgres://"),
        ("BASE_DOMAIN", "a b"),
        ("CGROUP_PARENT", "../x"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, proxy"),
        ("RATE_LIMIT_HOURLY", "-1"),
        ("OTLP_URL", "localhost:4318"),
        ("ROUTER", "caddy"),
        ("CADDY_ADMIN_URL", "2019"),
        ("NODE_NAME", "a/b"),
    ]))
    .unwrap_err();
    assert_eq!(error.problems.len(), 14, "{error}");
    assert!(error.to_string().contains("TRUSTED_PROXIES: \"proxy\" is not of the form"), "{error}");
    assert!(error.to_string().contains("CONTAINER_MODE=\"lxc\": one of podman, docker"), "{error}");
}

#[test]
fn a_base_domain_is_one_that_hosts_can_be_below() {
    for domain in ["", ".", "demo.", ".demo", "a..b", &"a".repeat(64), &"a.".repeat(120)] {
        let error = Config::check(&with(&[("BASE_DOMAIN", domain)])).unwrap_err();
        assert!(error.problems[0].starts_with("BASE_DOMAIN="), "{error}");
    }
    Config::check(&with(&[("BASE_DOMAIN", "Demo-1.example.com")])).unwrap();
}

#[test]
fn a_time_without_end_is_refused() {
    for name in ["DEFAULT_TTL", "MAX_TTL", "SHOP_TIMEOUT"] {
        let error = Config::check(&with(&[("MAX_TTL", "87600h"), (name, "87601h")])).unwrap_err();
        assert!(error.to_string().contains(&format!("{name}=\"87601h\"")), "{error}");
    }
}

#[test]
fn a_complaint_about_a_file_has_no_value_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (env, toml) = (dir.path().join("env"), dir.path().join("config.toml"));
    std::fs::write(&env, "STORE_URL=\"redis://:hunter2@host\nLISTEN=127.0.0.1:1 hunter2\n").unwrap();
    let error = collect_from(&[&env], Values::new()).unwrap_err().to_string();
    assert!(
        error.contains("the line of STORE_URL is not of the form") && !error.contains("hunter2"),
        "{error}"
    );
    std::fs::write(&toml, "listen = \"127.0.0.1:1\"\nstore_url = \"redis://:hunter2@host\n").unwrap();
    let flags = Values::from([("CONFIG_FILE".to_owned(), toml.display().to_string())]);
    let error = collect_from(&[], flags).unwrap_err().to_string();
    assert!(error.contains("config.toml: line 2: ") && !error.contains("hunter2"), "{error}");
}

#[test]
fn docker_mode_wants_a_socket_of_this_host_and_cold_starts() {
    let docker = ("CONTAINER_MODE", "docker");
    let config = Config::check(&with(&[docker])).unwrap();
    assert_eq!(config.docker_socket, Path::new("/var/run/docker.sock"));
    let error = Config::check(&with(&[docker, ("DOCKER_HOST", "tcp://10.0.0.1:2375")])).unwrap_err();
    assert!(error.to_string().contains("DOCKER_HOST=\"tcp://10.0.0.1:2375\": unix://"), "{error}");
    let error = Config::check(&with(&[docker, ("COLD_START", "refused")])).unwrap_err();
    assert!(error.to_string().contains("set COLD_START=allowed, or CONTAINER_MODE=podman"), "{error}");
    // Somebody else's setting, while Podman is asked for.
    Config::check(&with(&[("DOCKER_HOST", "ssh://elsewhere")])).unwrap();
}

#[test]
fn what_belongs_to_a_valkey_is_checked_with_it() {
    let config = Config::check(&with(&[
        ("STORE_URL", "rediss://demo@valkey.example.com"),
        ("STORE_PASSWORD_FILE", "/etc/demo-multiplexer/valkey"),
        ("STORE_CA_FILE", "/etc/ssl/own.pem"),
        ("NODE_NAME", "host-7"),
    ]))
    .unwrap();
    let StoreAt::Valkey(at) = config.store else { panic!("{:?}", config.store) };
    assert_eq!((at.prefix.as_str(), config.node.as_str()), ("demo-multiplexer", "host-7"));
    assert_eq!(at.ca_file.as_deref(), Some(Path::new("/etc/ssl/own.pem")));

    let error = Config::check(&with(&[
        ("STORE_URL", "redis://:secret@valkey.example.com"),
        ("STORE_PASSWORD_FILE", "/etc/demo-multiplexer/valkey"),
        ("STORE_CA_FILE", "/etc/ssl/own.pem"),
        ("STORE_PREFIX", "a{b}"),
        ("NODE_NAME", "Host 7"),
    ]))
    .unwrap_err();
    assert_eq!(error.problems.len(), 4, "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn the_schemes_own_port_is_left_out_of_urls() {
    let config = Config::check(&with(&[("PUBLIC_SCHEME", "https"), ("PUBLIC_PORT", "443")])).unwrap();
    assert_eq!(config.host_of("abc"), "abc.localhost");
}

#[test]
fn flags_stand_over_the_file_and_the_file_over_env() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "POOL_TARGET_SIZE=1\nMAX_INSTANCES=7\nSLOTS_AHEAD=1\n").unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "pool_target_size = 2\nmax_instances = 8\n").unwrap();
    let flags = Values::from([
        ("CONFIG_FILE".to_owned(), file.display().to_string()),
        ("POOL_TARGET_SIZE".to_owned(), "3".to_owned()),
    ]);
    let config = Config::check(&collect(dir.path(), flags).unwrap()).unwrap();
    assert_eq!((config.pool_target_size, config.max_instances, config.slots_ahead), (3, 8, 1));
}

#[test]
fn the_services_file_stands_below_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (service, own) = (dir.path().join("service.env"), dir.path().join(".env"));
    std::fs::write(&service, "# x\nPOOL_TARGET_SIZE=1\nMAX_INSTANCES=7\n").unwrap();
    std::fs::write(&own, "POOL_TARGET_SIZE=2\n").unwrap();
    let values = collect_from(&[&service, &own], Values::new()).unwrap();
    assert_eq!((values["POOL_TARGET_SIZE"].as_str(), values["MAX_INSTANCES"].as_str()), ("2", "7"));
    std::fs::write(&service, "MAX_INSTANCES='7\n").unwrap();
    let error = collect_from(&[&service, &own], Values::new()).unwrap_err();
    assert!(error.to_string().contains("service.env"), "{error}");
}

#[test]
fn a_file_with_an_unknown_setting_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "pool_size = 2\n").unwrap();
    let flags = Values::from([("CONFIG_FILE".to_owned(), file.display().to_string())]);
    let error = collect(dir.path(), flags).unwrap_err();
    assert!(error.to_string().contains("pool_size is not a setting"), "{error}");
}

#[test]
fn a_subnet_hands_out_what_lies_between_network_and_broadcast() {
    let subnet: Subnet = "10.77.0.0/29".parse().unwrap();
    assert_eq!(subnet.address(1), Some(Ipv4Addr::new(10, 77, 0, 1)));
    assert_eq!(subnet.address(6), Some(Ipv4Addr::new(10, 77, 0, 6)));
    assert_eq!(subnet.address(7), None, "the broadcast address");
    assert_eq!(subnet.index(Ipv4Addr::new(10, 77, 0, 6)), Some(6));
    assert_eq!(subnet.index(Ipv4Addr::new(10, 78, 0, 6)), None);
}
