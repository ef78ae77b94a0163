<?php
/**
 * A small browser for scripts that run inside a golden: keeps cookies, follows redirects, always talks to the nginx of
 * its own container under the name golden.invalid, whatever host a redirect names.
 */
final class Browser
{
    private CurlHandle $curl;
    /** Path and query of the page that answered last, after redirects. */
    public string $location = '/';

    public function __construct()
    {
        $this->curl = curl_init();
        // An empty cookie file switches curl's cookie engine on.
        curl_setopt_array($this->curl, [
            CURLOPT_RETURNTRANSFER => true,
            CURLOPT_COOKIEFILE => '',
            CURLOPT_CONNECT_TO => ['::127.0.0.1:80'],
            CURLOPT_FOLLOWLOCATION => true,
            CURLOPT_MAXREDIRS => 10,
            // The first page of a cold back office compiles for many seconds.
            CURLOPT_TIMEOUT => 180,
        ]);
    }

    public function get(string $path): string
    {
        curl_setopt($this->curl, CURLOPT_HTTPGET, true);
        return $this->send($path);
    }

    /** @param array<string, string> $fields */
    public function post(string $path, array $fields): string
    {
        curl_setopt($this->curl, CURLOPT_POSTFIELDS, http_build_query($fields));
        return $this->send($path);
    }

    private function send(string $path): string
    {
        curl_setopt($this->curl, CURLOPT_URL, "http://golden.invalid$path");
        $started = microtime(true);
        $page = curl_exec($this->curl);
        if ($page === false) {
            throw new RuntimeException("$path: " . curl_error($this->curl));
        }
        $status = curl_getinfo($this->curl, CURLINFO_RESPONSE_CODE);
        $url = parse_url(curl_getinfo($this->curl, CURLINFO_EFFECTIVE_URL));
        $this->location = $url['path'] . (isset($url['query']) ? "?{$url['query']}" : '');
        printf("%d %5.0f ms %s\n", $status, (microtime(true) - $started) * 1000, $this->location);
        if ($status >= 400) {
            throw new RuntimeException("$path: status $status");
        }
        return $page;
    }
}
