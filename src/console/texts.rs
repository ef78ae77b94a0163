//! What the console says, in each language.

use crate::lang::texts;

texts! {
    /// The console's texts.
    Texts {
        console: "Console", "Console";
        overview: "Overview", "Vue d’ensemble";
        instances: "Instances", "Instances";
        snapshots: "Snapshots", "Instantanés";
        limits: "Limits", "Limites";
        events: "Events", "Événements";
        sections: "Sections", "Rubriques";
        sign_in: "Sign in", "Se connecter";
        sign_out: "Sign out", "Se déconnecter";
        sign_in_lead: "For operators: a token with the scope operate or admin.", "Pour les exploitants : un jeton avec la portée operate ou admin.";
        token: "API token", "Jeton d’API";
        token_wrong: "This token is not known, or it is not for the console.", "Ce jeton est inconnu, ou il ne donne pas accès à la console.";
        too_many: "Too many failed sign-ins. Try again in {}.", "Trop d’échecs de connexion. Réessayez dans {}.";
        no_tokens: "No API_TOKENS are set: the console opens on the daemon’s own host, at an address such as http://localhost:8080/admin.", "API_TOKENS n’est pas défini : la console s’ouvre sur la machine du démon, à une adresse comme http://localhost:8080/admin.";
        signed_in_as: "Signed in as {}", "Connecté : {}";
        live: "Live", "En direct";
        reconnecting: "Reconnecting…", "Reconnexion…";
        ready: "Ready", "Prêtes";
        of_target: "of {} wanted", "sur {} voulues";
        assigned: "With visitors", "Chez des visiteurs";
        coming: "In the making", "En préparation";
        in_use: "Places taken", "Places occupées";
        of_max: "of {}", "sur {}";
        waiting: "Clients waiting", "Clients en attente";
        hit_ratio: "From the pool", "Servies par la réserve";
        since_start: "since the start", "depuis le démarrage";
        failures: "Failures", "Échecs";
        golden: "Golden", "Modèle";
        target: "Target", "Cible";
        usual: "setting: {}", "réglage : {}";
        set_target: "Set", "Appliquer";
        target_of: "Target of {}", "Cible de {}";
        last_error: "Last error: {}", "Dernière erreur : {}";
        pool: "Pool", "Réserve";
        drain: "Drain", "Vidanger";
        undrain: "Fill again", "Remplir à nouveau";
        drained: "The pool is drained: nothing is handed out or made; what is there stays.", "La réserve est en vidange : rien n’est remis ni préparé ; l’existant reste.";
        drain_sure: "Hand out nothing more until the pool is filled again?", "Ne plus rien remettre jusqu’au prochain remplissage ?";
        nodes: "Nodes", "Nœuds";
        room: "Room", "Places libres";
        version: "Version", "Version";
        condition: "Condition", "Situation";
        node_here: "here", "présent";
        node_drained: "drained", "en vidange";
        node_silent: "silent", "silencieux";
        node_away: "away", "absent";
        node_lost: "lost", "perdu";
        last_hour: "The last hour", "La dernière heure";
        chart_pool: "Instances", "Instances";
        chart_latency: "Acquire latency", "Temps d’obtention";
        chart_hits: "Served from the pool", "Servies par la réserve";
        chart_phases: "Restore by phase", "Restauration par étape";
        chart_memory: "Memory of the host", "Mémoire de la machine";
        chart_disk: "Disk of the state directory", "Disque du répertoire d’état";
        chart_errors: "Errors", "Erreurs";
        from_pool: "pool {}", "réserve {}";
        from_restore: "restore {}", "restauration {}";
        from_cold: "cold start {}", "démarrage à froid {}";
        not_made: "not made", "non préparées";
        turned_away: "clients turned away", "clients refusés";
        used: "used", "utilisé";
        no_values: "Nothing in this time.", "Rien dans cet intervalle.";
        search: "Search", "Rechercher";
        search_hint: "Id, golden, snapshot, node or address", "Identifiant, modèle, instantané, nœud ou adresse";
        state: "State", "État";
        any: "Any", "Tous";
        sort: "Sort by", "Trier par";
        sort_created: "Oldest first", "Les plus anciennes";
        sort_created_back: "Newest first", "Les plus récentes";
        sort_expires: "Ending soonest", "Fin la plus proche";
        sort_golden: "Golden", "Modèle";
        sort_state: "State", "État";
        sort_id: "Id", "Identifiant";
        shown_of: "{} of {} shown", "{} sur {} affichées";
        none_found: "No instance is like that.", "Aucune instance ne correspond.";
        id: "Id", "Identifiant";
        left: "Time left", "Temps restant";
        source: "From", "Origine";
        actions: "Actions", "Actions";
        open: "Open", "Ouvrir";
        log_in: "Log in", "Connexion admin";
        extend: "Extend", "Prolonger";
        extend_by: "+30 min", "+30 min";
        reset: "Reset", "Réinitialiser";
        reset_sure: "Make this shop anew? What its visitor has changed is lost.", "Refaire cette boutique ? Les modifications de son visiteur sont perdues.";
        hibernate: "Sleep", "Endormir";
        wake: "Wake", "Réveiller";
        release: "Release", "Libérer";
        release_sure: "End this instance now? Its visitor loses it.", "Terminer cette instance maintenant ? Son visiteur la perd.";
        logs: "Logs", "Journaux";
        no_logs: "Its golden names no log file, or none is there yet.", "Son modèle ne nomme aucun journal, ou aucun n’existe encore.";
        empty: "(empty)", "(vide)";
        cannot_read: "Cannot be read: {}", "Illisible : {}";
        shell: "Shell", "Terminal";
        shell_hint: "Opens a shell in it, typed on its host:", "Ouvre un terminal dedans, à taper sur sa machine :";
        copy: "Copy", "Copier";
        copied: "Copied", "Copié";
        created: "Made", "Préparée";
        node: "Node", "Nœud";
        snapshot: "Snapshot", "Instantané";
        address: "Address", "Adresse";
        back: "Back to the list", "Retour à la liste";
        size: "Size", "Taille";
        unpacked: "{} unpacked", "{} décompressé";
        taken: "Taken", "Pris le";
        served: "Served", "En service";
        usable: "Usable", "Utilisable";
        unusable: "Unusable: {}", "Inutilisable : {}";
        refused: "Refused: {}", "Refusé : {}";
        runs_on: "{} instances", "{} instances";
        promote: "Serve", "Mettre en service";
        promote_sure: "Try this snapshot, then restore the pool from it?", "Essayer cet instantané, puis restaurer la réserve à partir de lui ?";
        verify: "Verify", "Vérifier";
        remove: "Remove", "Supprimer";
        remove_sure: "Remove this snapshot for good?", "Supprimer définitivement cet instantané ?";
        create: "Take a snapshot", "Prendre un instantané";
        prune: "Remove old ones", "Supprimer les anciens";
        keep: "Keep of each golden", "À garder par modèle";
        no_snapshots: "There are no snapshots.", "Il n’y a pas d’instantané.";
        goldens: "Goldens", "Modèles";
        restored_from: "restored from {}", "restauré à partir de {}";
        only_booted: "only booted: {}", "seulement démarré : {}";
        tasks: "Tasks", "Tâches";
        no_tasks: "None since the daemon was started.", "Aucune depuis le démarrage du démon.";
        task_create: "Take a snapshot of {}", "Prendre un instantané de {}";
        task_verify: "Verify {}", "Vérifier {}";
        task_promote: "Serve {}", "Mettre {} en service";
        task_prune: "Remove old snapshots, {}", "Supprimer les anciens instantanés, {}";
        task_remove: "Remove {}", "Supprimer {}";
        running: "running", "en cours";
        done: "done", "terminé";
        failed: "failed", "échoué";
        client: "Client", "Client";
        hour_left: "Left in the hour", "Reste dans l’heure";
        day_left: "Left in the day", "Reste dans la journée";
        refused_count: "Refused", "Refusées";
        seen: "Seen", "Vu";
        clear: "Clear", "Effacer";
        limited: "at its limit", "à sa limite";
        limits_are: "{} instances an hour and {} a day for one client; 0 is no limit.", "{} instances par heure et {} par jour pour un client ; 0 : sans limite.";
        no_clients: "No limited client has asked since the daemon was started.", "Aucun client limité n’a demandé depuis le démarrage du démon.";
        when: "When", "Quand";
        what: "What", "Quoi";
        no_events: "Nothing has happened since the daemon was started.", "Rien ne s’est passé depuis le démarrage du démon.";
        all_events: "All events", "Tous les événements";
        did_released: "The instance is released.", "L’instance est libérée.";
        did_extended: "The instance has more time.", "L’instance a plus de temps.";
        did_reset: "The instance is as its golden again.", "L’instance est revenue à l’état de son modèle.";
        did_asleep: "The instance sleeps; the next visit wakes it.", "L’instance dort ; la prochaine visite la réveille.";
        did_woken: "The instance is awake.", "L’instance est réveillée.";
        did_target: "The target is changed.", "La cible est modifiée.";
        did_drained: "The pool is drained.", "La réserve est en vidange.";
        did_undrained: "The pool is filled again.", "La réserve se remplit à nouveau.";
        did_begun: "The task has begun.", "La tâche a commencé.";
        did_cleared: "The client begins anew.", "Le client repart de zéro.";
        not_done: "Not done", "Non effectué";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        let alike =
            ["console", "instances", "chart_pool", "extend_by", "actions", "client", "runs_on", "version"];
        crate::lang::assert_translated(Texts::ALL, &alike);
    }
}
