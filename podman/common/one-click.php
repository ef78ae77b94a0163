<?php
// One-click login, the part all shops share. A shop's own part, /golden/login.php, is what nginx runs for /demo-login
// (login.conf): it calls one_click_check(), loads the shop, signs the administrator in and calls one_click_go().
//
// A link's token is EXPIRES.NONCE.MAC: seconds since 1970, 32 hexadecimal digits, and HMAC-SHA256 of "EXPIRES.NONCE" under
// the clone's login_key. A used one leaves a file named after its nonce.

/** Sends a visitor without a good link to the login form and ends; with one, uses the link up and returns. */
function one_click_check(string $login_path): void
{
    // The address has the token in it: no page it leads to and no cache shall see it.
    header('Referrer-Policy: no-referrer');
    header('Cache-Control: no-store');
    // A look ahead, by a browser or whoever checks links in mails, does not use it up.
    if ($_SERVER['REQUEST_METHOD'] !== 'GET' || isset($_SERVER['HTTP_SEC_PURPOSE']) || isset($_SERVER['HTTP_PURPOSE'])) {
        header('Allow: GET');
        http_response_code(405);
        exit;
    }
    $key = INSTANCE['login_key'] ?? '';
    $token = is_string($_GET['token'] ?? null) ? $_GET['token'] : '';
    if (strlen($key) < 32
        || !preg_match('/^(\d{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})$/D', $token, $part)
        || !hash_equals(hash_hmac('sha256', "$part[1].$part[2]", $key), $part[3])
        || time() >= (int) $part[1]
        // Of all who ask at once, one creates it.
        || !@fopen("/var/lib/golden/used-links/$part[2]", 'x')
    ) {
        one_click_refuse($login_path);
    }
    // Nothing of the shop shall see it either.
    unset($_GET['token'], $_REQUEST['token']);
    $_SERVER['QUERY_STRING'] = '';
    $_SERVER['REQUEST_URI'] = '/demo-login';
}

/** The module whose page the link is to lead to (&module=NAME), if it names one. Read before the shop is loaded. */
function one_click_module(): ?string
{
    $module = is_string($_GET['module'] ?? null) ? $_GET['module'] : '';
    unset($_GET['module'], $_REQUEST['module']);
    return preg_match('/^[A-Za-z0-9_-]{1,64}$/D', $module) ? $module : null;
}

/** The page that points to the login form. */
function one_click_refuse(string $login_path): never
{
    http_response_code(403);
    header('Content-Type: text/html; charset=utf-8');
    header("Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'");
    $login = htmlspecialchars(INSTANCE['url'] . $login_path);
    echo <<<HTML
        <!DOCTYPE html>
        <html lang="en">
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width">
        <title>This link does not work any more</title>
        <style>body { font: 1.1em/1.5 sans-serif; max-width: 32em; margin: 15vh auto; padding: 0 1em }</style>
        <h1>This link does not work any more</h1>
        <p>It signs in once, and only for some minutes. With the e-mail address and the password that came with it you can
        always <a href="$login">log in</a>.</p>
        </html>

        HTML;
    exit;
}

/** Sends the visitor, signed in, to a page of the shop. */
function one_click_go(string $path): never
{
    header('Location: ' . INSTANCE['url'] . $path, true, 302);
    exit;
}
