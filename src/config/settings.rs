//! The one list of settings.

/// A setting's name, default and explanation.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable; lower case it is the TOML key, with dashes the flag.
    pub name: &'static str,
    /// The value when nobody sets it.
    pub default: &'static str,
    /// One sentence for `--help`, `.env.example` and docs/settings.md.
    pub help: &'static str,
}

const fn setting(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { name, default, help }
}

/// Every setting there is.
pub const SETTINGS: &[Setting] = &[
    setting("CONFIG_FILE", "", "A TOML file with settings in lower case; flags stand over it"),
    setting(
        "GOLDEN",
        "prestashop",
        "The golden to serve: a recipe's name or folder; further ones after a comma",
    ),
    setting("POOL_TARGET_SIZE", "4", "Instances kept ready for each golden"),
    setting("MAX_INSTANCES", "64", "Instances of all states this host holds at most"),
    setting("RESTORE_CONCURRENCY", "0", "Restores that run at once; 0 takes one more than there are cores"),
    setting(
        "ACQUIRE_WAIT",
        "5s",
        "How long a client may have to wait for others' restores; who would wait longer gets a 503 with Retry-After at once",
    ),
    setting(
        "SLOTS_AHEAD",
        "4",
        "Slots (address, network namespace, cgroup, directories) made before they are needed",
    ),
    setting(
        "CONTAINER_MODE",
        "podman",
        "podman: snapshots are restored; docker: shops are booted by a Docker engine, which restores none",
    ),
    setting(
        "DOCKER_HOST",
        "unix:///var/run/docker.sock",
        "The Docker engine of CONTAINER_MODE=docker: a unix socket of this host",
    ),
    setting("COLD_START", "allowed", "allowed or refused: boot the golden when it cannot be restored"),
    setting(
        "DATABASE_MODE",
        "bundled",
        "bundled: each shop has its own MariaDB, frozen with it; shared: a database of its own on one server",
    ),
    setting(
        "DATABASE_URL",
        "mysql://root@localhost/?socket=/run/mysqld/mysqld.sock",
        "The shared server (MariaDB 10.11 or newer) and its administrator, mysql://USER:PASSWORD@localhost/?socket=PATH",
    ),
    setting("DATABASE_PASSWORD_FILE", "", "A file with that administrator's password"),
    setting(
        "DATABASE_PREFIX",
        "",
        "What this daemon's databases and users are named with; empty takes dmux_ and a hash of STATE_DIR",
    ),
    setting("BASE_DOMAIN", "localhost", "Instances live at <id>.<this>; *.localhost needs no DNS"),
    setting(
        "TRUSTED_PROXIES",
        "127.0.0.0/8,::1/128",
        "Proxies in front, as networks: the client is the last address of X-Forwarded-For that is none of them; empty trusts nobody",
    ),
    setting(
        "RATE_LIMIT_HOURLY",
        "10",
        "Acquires of one client in an hour at most; 0 is no limit; clients on this host have none",
    ),
    setting("RATE_LIMIT_DAILY", "30", "The same in a day"),
    setting("PUBLIC_SCHEME", "http", "http or https, as visitors see it"),
    setting("PUBLIC_PORT", "", "The port visitors see; empty takes the one of LISTEN"),
    setting("LISTEN", "127.0.0.1:8080", "Where API and built-in proxy listen"),
    setting(
        "ADMIN_LISTEN",
        "",
        "Where metrics, health and what takes a token's operate or admin scope are answered, and then only there; empty takes LISTEN",
    ),
    setting(
        "API_TOKENS",
        "",
        "Who may ask the API for more than instances: a file (mode 0600, its path begins with /) or a comma separated list of NAME:SCOPE[+SCOPE]:HASH, from the token command; empty lets this host's own clients",
    ),
    setting(
        "ADMIN_AUTH_HEADER",
        "",
        "A header in which a proxy in front names the operator it has signed in, such as X-Forwarded-User; it counts for the console, and only from TRUSTED_PROXIES, which must take it from everybody else",
    ),
    setting(
        "ACQUIRE",
        "open",
        "open: anybody may acquire, within the limits; token: only holders of a token with the scope acquire",
    ),
    setting(
        "CORS_ORIGINS",
        "",
        "Origins whose pages may acquire and see to instances, such as https://www.example.com, comma separated; * is any, without tokens",
    ),
    setting(
        "MAX_CONNECTIONS",
        "16384",
        "Connections at once on each address listened on; one client has an eighth of them at most",
    ),
    setting("SHOP_BODY_MAX", "64M", "The largest request body that is passed on to a shop"),
    setting("SHOP_TIMEOUT", "60s", "How long a shop may take until its answer begins"),
    setting("BANNER", "off", "on: the built-in proxy shows the time that is left on the shops' pages"),
    setting(
        "LANDING",
        "auto",
        "on: visitors get instances on a page at BASE_DOMAIN, without a token; off: there is none; auto: as ACQUIRE says",
    ),
    setting(
        "EMBED_ORIGINS",
        "*",
        "Origins whose pages may show the page's button in a frame, such as https://www.example.com, comma separated; * is any",
    ),
    setting(
        "ROUTER",
        "embedded",
        "embedded: the built-in proxy leads visitors to instances; caddy: routes are also kept in Caddy",
    ),
    setting(
        "CADDY_ADMIN_URL",
        "http://127.0.0.1:2019",
        "Caddy's admin API for ROUTER=caddy; unix//run/caddy/admin.sock for a socket",
    ),
    setting(
        "STORE_URL",
        "embedded:",
        "embedded:PATH (without a path in STATE_DIR), or a Valkey that several daemons share: \
         redis://[user:password@]host[:port][/database], rediss:// with TLS, \
         redis+sentinel://[user:password@]host:port,host:port/primary[/database]",
    ),
    setting("STORE_PASSWORD_FILE", "", "A file with Valkey's password, which then need not be in STORE_URL"),
    setting(
        "STORE_CA_FILE",
        "",
        "The authorities, in PEM, that sign Valkey's certificate; empty takes the system's",
    ),
    setting("STORE_PREFIX", "demo-multiplexer", "What all keys in Valkey begin with, in braces"),
    setting(
        "NODE_NAME",
        "",
        "This daemon's name among those that share a Valkey, NATS or Caddy, each on a host or STATE_DIR of its own; \
         empty takes the host's name",
    ),
    setting(
        "NODE_ADDRESS",
        "",
        "Where the other nodes that share STORE_URL reach this daemon's LISTEN, HOST:PORT in a network of their own; \
         empty: this host is the only one",
    ),
    setting(
        "NODE_SECRET_FILE",
        "",
        "A file (mode 0600) with a text that only the nodes know, by which they know each other",
    ),
    setting(
        "NATS_URL",
        "",
        "NATS JetStream for jobs and events: nats:// or tls://[USER:PASSWORD@]HOST[:PORT], further servers of \
         the cluster after a comma; empty keeps jobs in the process",
    ),
    setting("NATS_CREDS_FILE", "", "A NATS credentials file (JWT and nkey), in place of user and password"),
    setting(
        "NATS_CA_FILE",
        "",
        "Certificates of the authority that signed the NATS servers'; empty takes the system's",
    ),
    setting(
        "NATS_PREFIX",
        "demo-multiplexer",
        "What the names of all subjects, streams and consumers in NATS begin with",
    ),
    setting("EVENTS_MAX_AGE", "168h", "How long NATS keeps life-cycle events"),
    setting("EVENTS_MAX_MIB", "256", "MiB of life-cycle events that NATS keeps; the oldest go first"),
    setting(
        "WEBHOOK_URLS",
        "",
        "Addresses that are told, signed, when an instance is acquired, expires, is released or fails; comma \
         separated, https or on this host",
    ),
    setting("WEBHOOK_SECRET", "", "What signs those messages, 16 characters at least; better in a file"),
    setting("WEBHOOK_SECRET_FILE", "", "A file (mode 0600) with that secret"),
    setting(
        "WEBHOOK_PLAIN_HTTP",
        "refused",
        "refused or allowed: tell also addresses of other hosts that begin with http://",
    ),
    setting(
        "STATE_DIR",
        "/var/lib/demo-multiplexer",
        "The daemon's files; best on XFS with reflink or btrfs",
    ),
    setting("SNAPSHOT_DIR", "/var/lib/demo-multiplexer/snapshots", "Snapshots at rest"),
    setting(
        "TRUSTED_SNAPSHOT_KEYS",
        "",
        "Files with public keys of other hosts whose snapshots are trusted, comma separated",
    ),
    setting(
        "RECIPE_DIR",
        "/usr/share/demo-multiplexer/podman",
        "Where golden recipes are looked for by name",
    ),
    setting("PRESTASHOP_SRC", "", "A PrestaShop release archive or folder for the prestashop recipe"),
    setting("DISK_MAX", "2G", "How much an instance may write, its share of the golden's files included"),
    setting("BRIDGE_NAME", "dmux0", "The bridge that instances hang on"),
    setting("BRIDGE_SUBNET", "10.77.0.0/16", "Its network; the first address is the bridge's own"),
    setting("EGRESS_REFRESH", "60s", "How often the names that a golden's network.allow lists are looked up"),
    setting("CGROUP_PARENT", "demo-multiplexer", "The cgroup below which instances live"),
    setting("DEFAULT_TTL", "1h", "An instance's time when the client names none"),
    setting("MAX_TTL", "24h", "The longest time an instance may live after it was handed out"),
    setting(
        "HIBERNATE_AFTER",
        "0s",
        "How long nobody may ask a shop until it sleeps and gives its memory back; 0s: none sleeps by itself",
    ),
    setting("SAVED_MAX", "20", "How many shops visitors may keep on this host; 0: none"),
    setting("SAVED_MAX_BYTES", "10G", "How much of the disk they may take together"),
    setting("SAVED_KEEP", "168h", "For how long a kept shop is kept"),
    setting(
        "API_URL",
        "",
        "Where the acquire, release, ls and extend commands find the daemon; empty takes LISTEN",
    ),
    setting(
        "API_TOKEN_FILE",
        "",
        "A file with the token that those commands show the daemon; the environment's API_TOKEN stands over it",
    ),
    setting(
        "SSE_MAX_CLIENTS",
        "auto",
        "Status streams that are open at once at most, each of which is a connection; further ones get a 503; auto: five eighths of MAX_CONNECTIONS, or of those that the open files suffice for",
    ),
    setting("LOG_LEVEL", "info", "What is logged, in the form of tracing's EnvFilter"),
    setting(
        "OTLP_URL",
        "",
        "An OpenTelemetry collector that the daemon sends traces to, such as http://127.0.0.1:4318; empty sends none",
    ),
    setting("LOG_FORMAT", "auto", "auto (text on a terminal, else json), text or json"),
];
