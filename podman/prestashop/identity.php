<?php
// Takes what belongs to one shop alone out of its files. PrestaShop keeps its secrets and where its database is in
// app/config/parameters.php, in a cached copy and compiled into its Symfony containers, and its address in cached pieces
// of pages. Each place gets an expression that reads the clone's own identity (keys.php). So a clone needs one small file
// rewritten, and everything compiled and cached stays valid.
//
//   identity.php parameters SHOP   right after the installation, before anything is compiled; does no harm a second time
//   identity.php cache SHOP        when everything is compiled and cached; does no harm a second time

/** PrestaShop's parameters that instance.ini has under another name. */
const DATABASE_PARAMETERS = [
    'database_name' => 'database', 'database_user' => 'database_user', 'database_password' => 'database_password',
];

/** PrestaShop's parameters that are files of the clone: whoever uses them takes a path too. */
const KEY_FILES = ['api_private_key' => '/etc/golden/api-private.pem', 'api_public_key' => '/etc/golden/api-public.pem'];

[, $step, $shop] = $argv;

if ($step === 'parameters') {
    $file = "$shop/app/config/parameters.php";
    $lines = '';
    foreach ((require $file)['parameters'] as $name => $value) {
        $code = match (true) {
            in_array($name, PRESTASHOP_KEYS, true) => "prestashop_key('$name')",
            isset(DATABASE_PARAMETERS[$name]) => "INSTANCE['" . DATABASE_PARAMETERS[$name] . "']",
            default => var_export(KEY_FILES[$name] ?? $value, true),
        };
        $lines .= "    '$name' => $code,\n";
    }
    $code = "<?php\nreturn ['parameters' => [\n$lines]];\n";
    // Untouched, what was made of it stays valid.
    if ($code !== file_get_contents($file)) {
        file_put_contents($file, $code);
    }
    exit;
}

/** The code of a compiled container or of the cached parameters: each secret is a string of its own there. */
function without_secrets(string $code): string
{
    foreach (PRESTASHOP_KEYS as $name) {
        $value = prestashop_key($name);
        $code = str_replace("'$value'", "\\prestashop_key('$name')", $code);
        if (str_contains($code, $value)) {
            throw new RuntimeException("$name is part of a longer string");
        }
    }
    return $code;
}

/** The same code: where the database is. By the name before it, for an empty password cannot be told from other texts. */
function without_database(string $code): string
{
    foreach (DATABASE_PARAMETERS as $parameter => $name) {
        $code = preg_replace("/(?<='$parameter' => )'[^']*'/", "\\INSTANCE['$name']", $code);
    }
    // Doctrine's connection.
    $text = "'[^']*'";
    $code = preg_replace(
        "/('dbname' => )$text(, 'user' => )$text(, 'password' => )$text/",
        "\$1\\INSTANCE['database']\$2\\INSTANCE['database_user']\$3\\INSTANCE['database_password']",
        $code,
    );
    // On a shared server its name is like no other word; beside the shop it is, and only the key tells.
    $shared = INSTANCE['database_password'] !== '';
    if (str_contains($code, "'dbname' => '") || ($shared && str_contains($code, INSTANCE['database']))) {
        throw new RuntimeException('the database is named in a form not known');
    }
    return $code;
}

/** A piece of a page that Smarty cached, as a PHP file: the address stands in the text between the pieces of code. */
function without_address(string $code): string
{
    $forms = [
        INSTANCE['url'] => "<?php echo INSTANCE['url'];?>",
        '//' . INSTANCE['host'] => "//<?php echo INSTANCE['host'];?>",
    ];
    $new = '';
    foreach (PhpToken::tokenize($code) as $token) {
        $new .= $token->is(T_INLINE_HTML) ? strtr($token->text, $forms) : $token->text;
    }
    return $new;
}

/** What is only good for the golden and rebuilt when missing. */
function is_disposable(string $path, string $content): bool
{
    // The main menu, with its links: 5 ms. What failed to be asked outside. And the frame of each back-office page, which
    // PrestaShop compiles anew for every session, with the session's tokens in it.
    return str_contains($path, '/ps_mainmenu/')
        || str_contains($path, '/circuit_breaker/')
        || (str_contains($path, '/twig/') && str_contains($content, INSTANCE['host']));
}

// One for each mode, of which debugging is another.
foreach (glob("$shop/var/cache/*", GLOB_ONLYDIR) as $cache) {
    foreach (new RecursiveIteratorIterator(new RecursiveDirectoryIterator($cache, FilesystemIterator::SKIP_DOTS)) as $file) {
        $old = file_get_contents($file);
        if (is_disposable($file, $old)) {
            unlink($file);
            continue;
        }
        try {
            $new = str_starts_with($file, "$cache/smarty/cache/") ? without_address($old) : without_database(without_secrets($old));
            if (str_contains($new, INSTANCE['host'])) {
                throw new RuntimeException('the address is in a form or place not known');
            }
        } catch (RuntimeException $e) {
            throw new RuntimeException("$file: {$e->getMessage()}");
        }
        if ($new !== $old) {
            file_put_contents($file, $new);
        }
    }
}
