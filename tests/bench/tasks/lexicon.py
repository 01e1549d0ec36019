"""Everyday words in English and French, with the forms that a sentence needs (own work)."""

from __future__ import annotations

import re
from dataclasses import dataclass

Pair = tuple[str, str]
# English[/plural]:French[/plural]:gender
_THINGS = """\
umbrella:parapluie:m book:livre:m letter:lettre:f key:clé:f phone:téléphone:m bag:sac:m coat:manteau/manteaux:m
hat:chapeau/chapeaux:m shirt:chemise:f dress/dresses:robe:f shoe:chaussure:f bicycle:vélo:m car:voiture:f
ticket:billet:m newspaper:journal/journaux:m picture:photo:f chair:chaise:f table:table:f lamp:lampe:f bed:lit:m
blanket:couverture:f mirror:miroir:m clock:horloge:f glass/glasses:verre:m cup:tasse:f plate:assiette:f
knife/knives:couteau/couteaux:m fork:fourchette:f spoon:cuillère:f bottle:bouteille:f box/boxes:boîte:f
suitcase:valise:f camera:appareil photo:m computer:ordinateur:m screen:écran:m guitar:guitare:f piano:piano:m
ball:ballon:m toy:jouet:m flower:fleur:f gift:cadeau/cadeaux:m stamp:timbre:m map:carte:f pen:stylo:m
notebook:cahier:m wallet:portefeuille:m watch/watches:montre:f ring:bague:f door:porte:f window:fenêtre:f
curtain:rideau/rideaux:m carpet:tapis/tapis:m wall:mur:m roof:toit:m boat:bateau/bateaux:m towel:serviette:f
soap:savon:m brush/brushes:brosse:f hammer:marteau/marteaux:m ladder:échelle:f bucket:seau/seaux:m
scarf/scarves:écharpe:f jacket:veste:f pair of gloves/pairs of gloves:paire de gants/paires de gants:f
contract:contrat:m invoice:facture:f parcel:colis/colis:m passport:passeport:m medicine:médicament:m"""
_FOODS = """\
apple:pomme:f pear:poire:f orange:orange:f lemon:citron:m potato/potatoes:pomme de terre/pommes de terre:f
carrot:carotte:f onion:oignon:m tomato/tomatoes:tomate:f egg:œuf:m cake:gâteau/gâteaux:m pie:tarte:f
biscuit:biscuit:m sandwich/sandwiches:sandwich:m pancake:crêpe:f mushroom:champignon:m bean:haricot vert/haricots
verts:m cherry/cherries:cerise:f strawberry/strawberries:fraise:f chicken:poulet:m fish/fish:poisson:m
sausage:saucisse:f salad:salade:f soup:soupe:f cheese:fromage:m loaf of bread/loaves of bread:pain:m"""
_STUFF = """\
bread:pain:m butter:beurre:m milk:lait:m sugar:sucre:m salt:sel:m flour:farine:f water:eau:f coffee:café:m
tea:thé:m rice:riz:m cheese:fromage:m meat:viande:f honey:miel:m jam:confiture:f juice:jus:m wine:vin:m oil:huile:f
soup:soupe:f paper:papier:m money:argent:m time:temps:m"""
_PLACES = """\
kitchen:cuisine:f garden:jardin:m bedroom:chambre:f bathroom:salle de bains:f street:rue:f park:parc:m
shop:magasin:m office:bureau:m school:école:f church/churches:église:f library:bibliothèque:f museum:musée:m
restaurant:restaurant:m hotel:hôtel:m village:village:m forest:forêt:f fridge:frigo:m drawer:tiroir:m
cupboard:placard:m cellar:cave:f living room:salon:m garage:garage:m train:train:m bus/buses:bus:m plane:avion:m"""
_TOWARDS = """\
market:marché:m station:gare:f airport:aéroport:m beach/beaches:plage:f cinema:cinéma:m theatre:théâtre:m
bank:banque:f school:école:f office:bureau:m museum:musée:m library:bibliothèque:f park:parc:m
restaurant:restaurant:m swimming pool:piscine:f bakery:boulangerie:f hospital:hôpital:m post office:poste:f town
hall:mairie:f pharmacy:pharmacie:f"""
_PERSONS = """\
sister:sœur:f brother:frère:m mother:mère:f father:père:m daughter:fille:f son:fils/fils:m aunt:tante:f
uncle:oncle:m grandmother:grand-mère/grands-mères:f grandfather:grand-père/grands-pères:m neighbour:voisin:m
friend:ami:m cousin:cousin:m teacher:professeur:m doctor:médecin:m boss/bosses:patron:m colleague:collègue:m
dog:chien:m cat:chat:m child/children:enfant:m baker:boulanger:m driver:chauffeur:m nurse:infirmière:f
student:étudiant:m guest:invité:m farmer:fermier:m"""
# English:masculine:feminine, plurals with s but for those given; placed before the noun or after it
_BEFORE = """\
new:nouveau/nouveaux:nouvelle old:vieux/vieux:vieille big:grand:grande small:petit:petite
beautiful:beau/beaux:belle good:bon:bonne"""
_AFTER = """\
red:rouge:rouge blue:bleu:bleue green:vert:verte white:blanc:blanche black:noir:noire yellow:jaune:jaune
heavy:lourd:lourde expensive:cher:chère cheap:bon marché/bon marché:bon marché/bon marché broken:cassé:cassée
empty:vide:vide full:plein:pleine dirty:sale:sale clean:propre:propre warm:chaud:chaude cold:froid:froide
wet:mouillé:mouillée heavy:lourd:lourde light:léger:légère round:rond:ronde strange:étrange:étrange
wonderful:merveilleux/merveilleux:merveilleuse useful:utile:utile"""
_MOODS = """\
tired:fatigué:fatiguée happy:content:contente sad:triste:triste ill:malade:malade late:en retard/en retard:en
retard/en retard ready:prêt:prête alone:seul:seule hungry:affamé:affamée angry:fâché:fâchée
worried:inquiet:inquiète busy:occupé:occupée sure:sûr:sûre surprised:surpris/surpris:surprise proud:fier:fière
nervous:nerveux/nerveux:nerveuse free:libre:libre patient:patient:patiente"""
# base past participle:infinitive:participle[:present of je tu il nous vous ils]; regular -er verbs are conjugated here
_HANDLED = """\
buy bought bought:acheter:acheté:achète achètes achète achetons achetez achètent
sell sold sold:vendre:vendu:vends vends vend vendons vendez vendent|find found found:trouver:trouvé
lose lost lost:perdre:perdu:perds perds perd perdons perdez perdent|look_for looked_for looked_for:chercher:cherché
forget forgot forgotten:oublier:oublié|bring brought brought:apporter:apporté
take took taken:prendre:pris:prends prends prend prenons prenez prennent
see saw seen:voir:vu:vois vois voit voyons voyez voient
choose chose chosen:choisir:choisi:choisis choisis choisit choisissons choisissez choisissent
wash washed washed:laver:lavé|repair repaired repaired:réparer:réparé|break broke broken:casser:cassé
carry carried carried:porter:porté|hide hid hidden:cacher:caché|give_away gave_away given_away:donner:donné
leave left left:laisser:laissé|keep kept kept:garder:gardé
paint painted painted:peindre:peint:peins peins peint peignons peignez peignent|show showed shown:montrer:montré
borrow borrowed borrowed:emprunter:emprunté
put_away put_away put_away:ranger:rangé:range ranges range rangeons rangez rangent
clean cleaned cleaned:nettoyer:nettoyé:nettoie nettoies nettoie nettoyons nettoyez nettoient
want wanted wanted:vouloir:voulu:veux veux veut voulons voulez veulent
throw_away threw_away thrown_away:jeter:jeté:jette jettes jette jetons jetez jettent"""
_EATEN = """\
eat ate eaten:manger:mangé:mange manges mange mangeons mangez mangent
cook cooked cooked:faire_cuire:fait_cuire:fais_cuire fais_cuire fait_cuire faisons_cuire faites_cuire font_cuire
cut cut cut:couper:coupé|prepare prepared prepared:préparer:préparé|taste tasted tasted:goûter:goûté
peel peeled peeled:éplucher:épluché|order ordered ordered:commander:commandé
share shared shared:partager:partagé:partage partages partage partageons partagez partagent
buy bought bought:acheter:acheté:achète achètes achète achetons achetez achètent|like liked liked:aimer:aimé"""
_ALONE = """\
work worked worked:travailler:travaillé|sleep slept slept:dormir:dormi:dors dors dort dormons dormez dorment
sing sang sung:chanter:chanté|dance danced danced:danser:dansé|cry cried cried:pleurer:pleuré
laugh laughed laughed:rire:ri:ris ris rit rions riez rient
run ran run:courir:couru:cours cours court courons courez courent
wait waited waited:attendre:attendu:attends attends attend attendons attendez attendent
read read read:lire:lu:lis lis lit lisons lisez lisent
write wrote written:écrire:écrit:écris écris écrit écrivons écrivez écrivent|speak spoke spoken:parler:parlé
play played played:jouer:joué|study studied studied:étudier:étudié
swim swam swum:nager:nagé:nage nages nage nageons nagez nagent|cook cooked cooked:cuisiner:cuisiné
walk walked walked:marcher:marché|help helped helped:aider:aidé|smoke smoked smoked:fumer:fumé"""
_PAST = """\
yesterday:hier|last week:la semaine dernière|this morning:ce matin|last night:hier soir
two days ago:il y a deux jours|last year:l'année dernière|on Monday:lundi|an hour ago:il y a une heure
last summer:l'été dernier|on Sunday:dimanche"""
_USUAL = """\
every day:tous les jours|often:souvent|every morning:tous les matins|on Saturdays:le samedi|in the evening:le soir
sometimes:parfois|every week:toutes les semaines|in winter:en hiver|in summer:en été|after dinner:après le dîner
before breakfast:avant le petit déjeuner"""
_SOON = """\
tomorrow:demain|next week:la semaine prochaine|tonight:ce soir|next year:l'année prochaine|on Friday:vendredi
in an hour:dans une heure|at eight o'clock:à huit heures|at noon:à midi|this afternoon:cet après-midi
next month:le mois prochain|before Christmas:avant Noël|soon:bientôt"""
_SPANS = """\
three years:trois ans|six months:six mois|two hours:deux heures|this morning:ce matin|Monday:lundi
a long time:longtemps|last year:l'année dernière"""
_WEATHER = """\
it is raining:il pleut|it is snowing:il neige|the sun is shining:le soleil brille
it is very cold:il fait très froid|it is hot:il fait chaud|the wind is strong:le vent est fort
it is getting dark:il commence à faire nuit|the weather is fine:il fait beau"""
_SAYINGS = """\
thank you very much:merci beaucoup|good morning:bonjour|see you tomorrow:à demain|of course:bien sûr
I am sorry:je suis désolé|excuse me:excusez-moi|no problem:pas de problème|have a good trip:bon voyage
happy birthday:joyeux anniversaire|it does not matter:cela ne fait rien"""
_NUMBERS = """\
two:deux three:trois four:quatre five:cinq six:six seven:sept eight:huit nine:neuf ten:dix twelve:douze
fifteen:quinze twenty:vingt thirty:trente"""
VOWEL = """\
aeiouyâàêéèëîïôöûœ"""


@dataclass(frozen=True)
class Noun:
    """A noun in both languages, singular and plural."""

    english: tuple[str, str]
    french: tuple[str, str]
    feminine: bool


@dataclass(frozen=True)
class Verb:
    """An English verb's base, past and participle; the French infinitive, participle and six present forms."""

    english: tuple[str, ...]
    infinitive: str
    participle: str
    present: tuple[str, ...]


def _forms(text: str) -> tuple[str, str]:
    one, _, many = text.partition("/")
    return one, many or (one if one.endswith(("s", "x")) else f"{one}s")


def _english_forms(text: str) -> tuple[str, str]:
    one, _, many = text.partition("/")
    return one, many or (f"{one[:-1]}ies" if one[-1] == "y" and one[-2] not in "aeiou" else f"{one}s")


def _nouns(text: str) -> list[Noun]:
    found = re.findall(r"([^:\s][^:]*):([^:]+):([mf])(?:\s|$)", text)
    return [Noun(_english_forms(english.strip()), _forms(french), gender == "f") for english, french, gender in found]


def _adjectives(text: str) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    found = re.findall(r"(\w+):([^:]+):((?:en retard|bon marché|[^:\s])+)(?:\s|$)", text)
    return [(english, _forms(his), _forms(hers)) for english, his, hers in found]


def _verbs(text: str) -> list[Verb]:
    found = []
    for entry in re.split(r"[|\n]", text):
        english, infinitive, participle, *present = entry.replace("_", "\u00a0").split(":")
        forms = (
            present[0].split(" ")
            if present
            else [infinitive[:-2] + end for end in ("e", "es", "e", "ons", "ez", "ent")]
        )
        found.append(Verb(tuple(english.split(" ")), infinitive, participle, tuple(forms)))
    return found


def _phrases(text: str) -> list[Pair]:
    return [tuple(entry.split(":")) for entry in re.split(r"[|\n]", text)]  # type: ignore[misc]


THINGS, FOODS, STUFF, PLACES, TOWARDS = map(_nouns, (_THINGS, _FOODS, _STUFF, _PLACES, _TOWARDS))
PERSONS, BEFORE, AFTER, MOODS = _nouns(_PERSONS), *map(_adjectives, (_BEFORE, _AFTER, _MOODS))
HANDLED, EATEN, ALONE = map(_verbs, (_HANDLED, _EATEN, _ALONE))
PAST, USUAL, SOON, SPANS, WEATHER, SAYINGS = map(_phrases, (_PAST, _USUAL, _SOON, _SPANS, _WEATHER, _SAYINGS))
NUMBERS = [tuple(entry.split(":")) for entry in _NUMBERS.split()]
