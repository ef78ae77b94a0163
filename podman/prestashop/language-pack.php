<?php
// The installer downloads the English texts. Without a network they come from where the download has them from: the
// catalogue in the source, whose texts are English already.

$translations = "$argv[1]/translations";
$pack = "$translations/sf-en-US.zip";
if (!file_exists($pack)) {
    $zip = new ZipArchive();
    $zip->open($pack, ZipArchive::CREATE);
    foreach (glob("$translations/default/*.xlf") as $file) {
        $texts = str_replace('target-language="en"', 'target-language="en-US"', file_get_contents($file));
        $zip->addFromString('en-US/' . basename($file, '.xlf') . '.en-US.xlf', $texts);
    }
    $zip->close();
}
// The installer asks only whether this one is there.
if (!file_exists("$translations/en.gzip")) {
    file_put_contents("$translations/en.gzip", gzencode(str_repeat("\0", 1024)));
}
