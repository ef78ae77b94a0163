//! The pages of the proxy itself: small, self-contained, nothing to load.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

use super::headers;
use crate::lang::{Lang, texts};

/// What the proxy has to say when there is no shop to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// No such shop.
    Unknown,
    /// Its time is over.
    Gone,
    /// It does not answer.
    Silent,
    /// It has the request and does not answer.
    Late,
    /// The request cannot be passed on.
    BadRequest,
    /// Its body is larger than a shop's may be.
    TooLarge,
    /// Its body stopped on the way.
    Stalled,
    /// The shop it was for has been replaced meanwhile, or put to sleep.
    MadeAnew,
    /// It sleeps and cannot be woken now.
    Asleep,
    /// Its node does not answer at the moment.
    Away,
    /// It is gone with its node.
    Lost,
}

texts! {
    /// The pages' texts.
    Texts {
        unknown: "There is no shop here", "Il n’y a pas de boutique ici";
        unknown_text: "Check the address. If it is right, this demo shop ended some time ago.", "Vérifiez l’adresse. Si elle est correcte, cette boutique de démonstration s’est terminée il y a quelque temps.";
        gone: "This demo has ended", "Cette démo est terminée";
        gone_text: "Its time is over, or something in it has failed, and everything in it is deleted. You can start a new one at any time.", "Son temps est écoulé, ou elle a rencontré une panne, et tout son contenu est supprimé. Vous pouvez en démarrer une nouvelle à tout moment.";
        silent: "This shop does not answer", "Cette boutique ne répond pas";
        silent_text: "It is there, but it does not answer at the moment. Try again in a few seconds.", "Elle existe, mais ne répond pas pour le moment. Réessayez dans quelques secondes.";
        late: "This shop takes too long", "Cette boutique met trop de temps";
        late_text: "It is still at work on your request, or it hangs. Look whether it was done before you try again.", "Elle traite encore votre demande, ou elle est bloquée. Vérifiez si cela a été fait avant de réessayer.";
        too_large: "This upload is too large", "Cet envoi est trop volumineux";
        too_large_text: "A demo shop takes smaller files only.", "Une boutique de démonstration n’accepte que des fichiers plus petits.";
        stalled: "This upload stopped on the way", "Cet envoi s’est interrompu";
        stalled_text: "Nothing has arrived for too long. Try again.", "Plus rien n’arrive depuis trop longtemps. Réessayez.";
        made_anew: "This shop was just started again", "Cette boutique vient de redémarrer";
        made_anew_text: "It is there in a moment, and this page is fetched again by itself.", "Elle sera là dans un instant, et cette page se recharge toute seule.";
        asleep: "This shop sleeps and does not wake yet", "Cette boutique dort et ne se réveille pas encore";
        asleep_text: "Nothing in it is lost. It is tried again by itself in some seconds.", "Rien n’y est perdu. Un nouvel essai a lieu tout seul dans quelques secondes.";
        away: "This shop is out of reach for a moment", "Cette boutique est momentanément injoignable";
        away_text: "The machine it runs on does not answer. It is tried again by itself in some seconds.", "La machine qui l’héberge ne répond pas. Un nouvel essai a lieu tout seul dans quelques secondes.";
        lost: "This shop is lost", "Cette boutique est perdue";
        lost_text: "The machine it ran on has failed, and everything in it is gone. You can start a new one at any time.", "La machine qui l’hébergeait est en panne, et tout son contenu a disparu. Vous pouvez en démarrer une nouvelle à tout moment.";
        bad: "This request cannot be passed on", "Cette demande ne peut pas être transmise";
        bad_text: "It does not name exactly one host, or it is not clear where it ends.", "Elle ne désigne pas exactement un hôte, ou sa fin n’est pas claire.";
        new_one: "Start a new demo", "Démarrer une nouvelle démo";
    }
}

/// For whom a page is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    /// What the visitor reads.
    pub(super) lang: Lang,
    /// Where the visitor can get another shop, if there is such a page.
    pub(super) landing: Option<&'a str>,
}

impl Page {
    const fn parts(self, t: &Texts) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Unknown => (StatusCode::NOT_FOUND, t.unknown, t.unknown_text),
            Self::Gone => (StatusCode::GONE, t.gone, t.gone_text),
            Self::Silent => (StatusCode::BAD_GATEWAY, t.silent, t.silent_text),
            Self::Late => (StatusCode::GATEWAY_TIMEOUT, t.late, t.late_text),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, t.too_large, t.too_large_text),
            Self::Stalled => (StatusCode::REQUEST_TIMEOUT, t.stalled, t.stalled_text),
            Self::MadeAnew => (StatusCode::SERVICE_UNAVAILABLE, t.made_anew, t.made_anew_text),
            Self::Asleep => (StatusCode::SERVICE_UNAVAILABLE, t.asleep, t.asleep_text),
            Self::Away => (StatusCode::SERVICE_UNAVAILABLE, t.away, t.away_text),
            Self::Lost => (StatusCode::GONE, t.lost, t.lost_text),
            Self::BadRequest => (StatusCode::BAD_REQUEST, t.bad, t.bad_text),
        }
    }

    /// The page for that host.
    pub(super) fn answer(self, host: &str, reader: Reader<'_>) -> Response {
        let t = Texts::of(reader.lang);
        let (status, title, text) = self.parts(t);
        let offer = match (self, reader.landing) {
            (Self::Unknown | Self::Gone | Self::Silent | Self::Lost, Some(landing)) => {
                format!("<p><a href=\"{}\">{}</a></p>", escape(landing), t.new_one)
            }
            _ => String::new(),
        };
        let again = match self {
            Self::MadeAnew => Some("1"),
            Self::Asleep | Self::Away => Some("5"),
            _ => None,
        };
        let refresh = again.map(|seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">"));
        let refresh = refresh.unwrap_or_default();
        let html = format!(
            "<!doctype html>\n<html lang=\"{}\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta name=\"robots\" content=\"noindex\">{refresh}<title>{title}</title><style>{STYLE}</style></head>\
             <body><main><h1>{title}</h1><p>{text}</p>{offer}<p><code>{}</code></p></main></body></html>\n",
            reader.lang.code(),
            escape(host)
        );
        let mut response = Response::new(Body::from(html));
        *response.status_mut() = status;
        for (name, value) in [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_LANGUAGE, reader.lang.code()),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
            // Where the visitor goes on is not told which shop it was.
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if let Some(seconds) = again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        headers::hide_from_robots(response.headers_mut());
        response
    }
}

/// That of the pages on the base domain, as far as a message needs it.
const STYLE: &str = ":root{color-scheme:light dark;--ground:#f6f7fb;--surface:#fff;--line:#dfe3ee;--text:#141a2b;\
--soft:#545d75;--accent:#4338ca;--on:#fff}\
@media(prefers-color-scheme:dark){:root{--ground:#0d111c;--surface:#151b2b;--line:#2b3450;--text:#e9ecf6;\
--soft:#a6afc8;--accent:#a5a2ff;--on:#14123a}}\
body{margin:0;font:1rem/1.55 system-ui,sans-serif;background:var(--ground);color:var(--text);overflow-wrap:break-word}\
main{max-width:36rem;margin:14vh auto 2rem;padding:clamp(1.2rem,5vw,2.25rem);background:var(--surface);\
border:1px solid var(--line);border-radius:14px}@media(max-width:40rem){main{margin:1rem}}\
h1{margin:0 0 .6rem;font-size:1.7rem;line-height:1.2;letter-spacing:-.02em}p{margin:0 0 1rem}\
p:last-child{margin:0}a{display:inline-block;padding:.75rem 1.3rem;border-radius:10px;background:var(--accent);\
color:var(--on);font-weight:600;text-decoration:none}a:focus-visible{outline:3px solid var(--accent);outline-offset:3px}\
code{color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}";

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(260) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &[]);
    }

    #[test]
    fn a_page_offers_another_shop_only_where_there_is_one_to_get() {
        let offers = |page: Page, landing| {
            let response = page.answer("a.localhost", Reader { lang: Lang::En, landing });
            let body = axum::body::to_bytes(response.into_body(), 1 << 16);
            let body = futures_util::FutureExt::now_or_never(body).unwrap().unwrap();
            String::from_utf8(body.to_vec())
                .unwrap()
                .contains("<a href=\"http://localhost/\">Start a new demo</a>")
        };
        let landing = Some("http://localhost/");
        assert!(offers(Page::Gone, landing) && offers(Page::Unknown, landing));
        assert!(!offers(Page::Gone, None) && !offers(Page::TooLarge, landing));
    }

    #[test]
    fn what_a_client_sent_is_escaped() {
        assert_eq!(
            escape("<img src='x' onerror=\"a&b\">"),
            "&lt;img src=&#39;x&#39; onerror=&quot;a&amp;b&quot;&gt;"
        );
    }
}
