"""The text normalizer: undoes what people do to a comment so that a filter does not read it.

One file that needs numpy alone: training imports it, an artifact carries a copy of it, and the served tokenizer loads
that copy. So a model is always served with the normalizer that it was trained with.

Steps, in this order, repeated until nothing changes (at most :data:`PASSES` times)::

    entities     &#105;diot        -> idiot
    characters   fullwidth, mathematical and circled letters -> plain ones (NFKC)        `compatibility`
                 zero-width, bidirectional and soft-hyphen characters, stacked marks go  `zero_width`
    homoglyphs   Cyrillic, Greek, ... look-alikes in a Latin word -> Latin letters       `homoglyph`
    spacing      i d i o t, i.d.i.o.t -> idiot                                           `spacing`
    leet         1d10t, @sshole -> idiot, asshole                                        `leet`
    stretching   idiooooot -> idiot                                                      `stretch`

The last three guess, and a wrong guess costs more than a missed one: numbers, dates, codes, addresses and lists of
letters must stay. So they ask a list of common words (:data:`WORDS`) whether a guess is a word. The list holds the
words of most training comments, validation left out, and the rude ones among the rarer words; it is in order of
frequency. It has to hold slurs: they are what is disguised.

What NFKC does and this does not: superscripts, subscripts, fractions, trade-mark signs and spacing accents stay, for
``m²`` is not ``m2`` and ``don´t`` has no space in it.

Sources: Unicode Standard Annex 15 (normalization forms) and Technical Standard 39 (confusables) for the ideas; the
tables were written by hand.
"""

import functools
import html
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html.entities import name2codepoint

import numpy as np

FEW = 4
"""Fewer texts are looked at one by one: an array has its price."""

TOGETHER = 64
"""So many texts are looked at together: what stays in the processor's nearest memory."""

PASSES = 4
"""A step may uncover what an earlier one looks for, such as letters spaced apart in fullwidth."""

EVASIONS = ("compatibility", "homoglyph", "leet", "spacing", "stretch", "zero_width")

# fmt: off
WORDS = """
the and you that for this not have are with your but article was from can page talk wikipedia what about there just
all please will like has would one don been should they any more which some see here other think who know also because
how out why only people edit when now did time thanks then get being his articles them than make may good even were
well use want does could very their way user had thank such its again need editing information first say really these
much where made find new look pages edits right sources take name help stop still before work many since into section
same someone source read most back discussion too add those used going after point over something blocked own two
deleted said another removed without fact added sure let done better might him anything never doesn off put link
reason list actually seems however history place keep believe content comment while nothing feel our didn case using
things person editors note little vandalism personal thing under free block yourself question wrong already comments
problem best change deletion though fuck hope both part trying give ask anyone sorry against remove others making
continue long agree last mean try understand few come above doing welcome isn hello must got rather world found else
policy leave editor life enough great years delete links issue check every probably different yes simply around day
reference ever image says yet least post either questions reliable maybe real thought show site write lot matter word
down far references seem clearly called adding through original non having reverted contributions instead subject
saying opinion message needs tell request her created given encyclopedia text correct users bit example support she
admin consensus account etc quite perhaps revert true until further once fucking english always consider makes old
clear between view bad written state important considered war times regarding man cannot top idea title website
whether notable hey material number tag start kind based shit getting whole several mention possible words left
evidence won care changes claim suggest current course attack year end call version book following dont means notice
address big states each less research second mentioned mind template seen sense date anyway three create myself stupid
next known main issues listed include review facts related happy away contribs full style everyone changed days
language stuff looking started although warning info term topic including four provide images group statement general
included especially recent appropriate wanted interested wrote american sign explain removing discuss relevant able
looks everything currently per line answer guidelines wish obviously learn hard stay rules move unless fair vandalize
speedy specific pretty nice taken order sentence sandbox guess remember certainly writing completely project wasn
today regards appears therefore guy itself ago came later reverting edited future report self whatever hell talking
faith love truth criteria noticed neutral exactly within copyright attacks cheers due below common working according
ass deleting summary fine claims posted during interest school picture community media similar single involved reading
appreciate past asked high useful response needed official soon notability otherwise haven public policies position
power anti reasons nor entry alone process taking live problems particular seriously argument country news recently
reply saw search administrator lead shouldn five tried almost category took stated entire contributing banned along
sort provided aware become game often hate quote indeed side certain enjoy decide admins internet paragraph appear
wouldn allowed names shows form likely published aren contact false web follow yeah moved political job test points
interesting obvious major nonsense told cited disagree dispute rule god themselves generally present attention result
longer google hours knowledge small creating week set status went previous simple terms worked actual placed copy
sourced ban short avoid deal gets united bitch piece hand calling party proper ones improve idiot goes system
explanation white description comes type happened books proof open together opinions valid guys helpful play
personally city thus suck necessary serious fix actions british blocking views biased heard assume government large
automatically action multiple addition file himself rest definition citation uploaded complete accept company works
friend cause doubt manual exist head class death author attempt various context film standard tildes unblock story
changing wait months email area black third run prove members upon apparently national asking level act sites usually
coming available accurate username difference living wikiproject happen respect okay record family external human none
lol absolutely close gay messages separate bias speak tagged situation citations refer gave dear lack details dick
music meaning supposed series meant except law sock sections july band violation earlier conflict statements accepted
administrators putting incorrect quality contribute irrelevant disruptive friends john uses march pillars couple half
online business university behind tags yours possibly lost space linked asshole video outside debate thinking gives
worth ahead unfortunately totally mistake face gone august giving directly knows posting specifically behavior dead
decided june towards historical crap january poor looked existing respond fun special purpose bring early among across
explaining stand rights error control wondering described reported sometimes abuse produce mine wonder box allow
period arguments sounds proposed final minor advice concerns computer inclusion german nobody theory tutorial december
neither civil chance vote house member finally september watch merely wants warring expect meet removal data
understanding takes racist science april cases numbers properly team acceptable entirely thats field ignore vandal
despite discussed inappropriate named born standards mother easily figure couldn significant particularly posts
indicate sound character november glad album nature experience photo criticism reader basically february sent featured
majority noted highly die lies shown moment song funny release south organization wow telling unsigned examples cool
definitely easy somewhere pictures october ridiculous requesting referenced culture discussions background decision
fixed anymore direct light seeing joke preceding templates modern tests somebody readers home hear suggested difficult
individual describe immediately countries importance appreciated experiment legal cunt primary international spam
constructive independent contribution hold luck explained beyond warnings kept ways month gonna table manner requested
north effort shut places missing cover body nomination detail contest access nazi red agreed leaving protected
starting total basis military accounts events unsourced verifiable required damn considering fully fan bottom force
meets stick century press america trouble kill referring previously middle extremely india lists speedily argue event
age beginning propaganda reasonable listen hopefully mostly refrain late merge join cut amount silly night discussing
weeks former pro suggestion admit low established children son controversial realize basic french finding board fit
movie creation insert club anywhere belong wikipedians infobox men strong groups quick legitimate claiming shared
nominated wording bunch remain sad results jews break faggot introduction authority service value forward speaking
king regardless active bother repeatedly brought includes huge willing vandalizing apply experimenting ideas happens
contributors concern dude update factual pathetic concerned fight shall excuse exists bullshit money presented bot
troll near showing episode accusations thoughts christian biography effect keeping send clean topics reality
scientific intended prior guide cant format games turn additional helping exact prevent women count size david afraid
guideline boy choice thinks local earth checking additions received failed battle perfectly controversy confused
acting offer negative sockpuppet child log whose instance behaviour limited updated jewish anybody websites knew
moving usage sex fairly west hit religion parts categories types surely phrase reverts became deserve citing checked
elsewhere besides social barnstar popular license helpme court front weight police confirm familiar practice worse
advertising keeps waste russian characters input suspect protection minutes playing easier random dumb normal prefer
wars improving offensive biographies claimed anonymous supported suggestions air stating map sick religious referred
return uploading greek spelling followed lie encyclopedic truly forum agenda upload ignorant strongly concept share
million reviewed cock society participate quotes role pushing running lots population church blog plus protect click
expert somewhat lives semi east somehow choose requests released professional mail died indian accused apologize award
israel sufficient color providing europe mark bold movement hence study concerning york trust nearly spend academic
college misleading president suppose watching pointed blocks via seemed careful hardly forget drop oppose felt
originally double closed secondary worry chinese rude season harassment shortly errors fellow michael straight reflect
famous surprised refers logic numerous western hesitate jesus football star positive quickly proposal paper eventually
alternative confirmed killed focus efforts supporting logged mess persons merged england loser unblocked step notes
userpage fat sir raised missed quit code furthermore areas eye contributor whom warned eyes regard continued copied
americans restored threats blue played matters young european addressed correctly worst verify commons subjects
attacking helps tone honest replaced reached thousands clicking require save held reports widely solution replace win
permission connection grow rationale approach coverage favor mistakes office contains lines shame busy assuming
companies plenty proven voice hasn provides mainstream spent talkpage woman covered pay development race fail range
attitude moron father contain frequently higher career spread china promote archive perfect flag eat track hour ill
honestly naming attempts caused censorship recommend campaign associated latest photos girl object town located blank
army dealing freedom central dog files titles pointing expand chat solid confusion plan ability defend disputed idiots
feedback blatant everybody confusing listing altered requires jun conclusion resolution hide turned opposed contrary
mentions speech appeared odd determine strange education fill program reporting throughout product dare paid visit
james ethnic land useless wishes existence belongs violate ground detailed rock reach weren fighting japanese
impossible sub thread nation bastard art lets incident restore forgot private ancient muslim peace languages entries
twice corrected politics contents fall location involvement critical reads reasoning brief unlike studies origin
repeated applied becoming figures mass structure insult center newspaper sake australia verifiability defined waiting
criterion sentences ready met match bio native magazine tagging signed republic tired likes lying dates aside germany
deserves fire irish threat latter interpretation frankly bands george evil perspective copyrighted ignored versions
develop shot suggesting peer curious intention calls benefit building violating impression archives domain responsible
wide hands letting mouth larger civility feeling trolling pass rewrite liar arguing touch quoted began experienced
summaries necessarily health translation advance players zero water fool excellent improved model arbitration friendly
verified paul neutrality northern clarify undo accuse parties brain mentioning mainly stands greater metal imagine mar
credit accusing worthy remains justify wales unnecessary pre continues liberal canada reviews folks green intent
department didnt vandals sucks disambiguation potential spanish push conduct complaint responded vandalized compromise
cares opening theories region commercial plain puppet plot credible violations empire broken logical sides committee
six individuals library assert disputes consistent delay kingdom apologies compared express peoples street attempting
length border bill lived knowing label penis analysis islam extreme insulting constantly contributed tool unable
london slightly software kid pure retarded fans ignorance annoying suggests lower goal rate conspiracy identify county
whoever grammar angry advise heart hundreds inaccurate identity balance learning canadian radio television medical
league technical carefully suitable records desk document attacked foreign significance crime design jimbo jack ten
fake lose fag hurt whatsoever dark yesterday sourcing kids repeat literature global apart understood bet led tools
blood network objections tomorrow explicitly begin interview authors african intro build expanded ignoring birth
minority genre brother apology judge propose onto ought episodes equal youtube powers union films key hitler student
conversation students inform room stopped resources drive william heads heading screen linking pick objective progress
agreement regular ireland terrorist purposes degree essentially belief passed artist allegations foundation schools
rid informed kindly commonly button split signature replied cross overall anyways hot justice investigation songs
developed average relationship morning sincerely registered whereas forces player laugh improvement extra damage
forever road forced resolved specified base dictionary crazy wife pop fast owner collection letter largely undue
revision jew cat communist uncivil russia biggest sexual responding channel justification activities harm oldid
unconstructive influence wing physical closely congratulations unique establish jerk wanna promise park remarks
publication option feb redirects learned vandalising station insist peter disruption mistaken refuse impact activity
japan lord inside illegal mad normally weird balls compare feature bothered appeal ugly treated counter stalking
instructions soviet projects continuing happening tend jan murder watchlist ongoing apparent relation sit nazis
standing mate opposition association tom abusive female laws cities directed promotion newcomers intelligence complain
granted organizations ensure obama engage assistance promotional parents haha racism method huh alright opposite acts
village gain australian seven typical portal harassing reviewing male showed unclear nigger rape accusation tells
usual maintain writer deliberately beliefs substantial election item brown resolve assertion fear specify fixing
accuracy royal initial draw older direction applies serve fringe threatening fuckin treatment designed seek function
baby largest encourage cultural arab warn interests wikimedia finished reaction paragraphs clarification supports
nations recognize determined officially appearance apr wont car recognized editorial fault destroy expected paste
differences pussy coupled decline violated draft unacceptable recall becomes journal roman daily vast upset absolute
censor documents votes buy production miss anon whenever opportunity islamic equally creator doesnt exception target
successful secret energy super existed greatly handle secondly security mediation conservative aspects allows
represent throw polish nowhere width technically follows france answered hoping eastern whats muslims profile industry
demand systems unlikely spirit toward leading dirty natural mere intend richard built adds documented feelings
believes dec attempted caught scholars deny ended possibility raise logo boys disgusting formal pointless innocent
inserted constitutes proves comparison hole israeli invited guilty round speculation justified heavy robert addresses
safe wasting defending alleged piss skills carry covers arrogant objection offered holder massive philosophy latin
clue minute identified bar notices stories bush jump killing britain catholic california receive bringing qualify
assumed consideration trivial bible entitled engaged believed display gotten horrible punk turkish bloody task dubious
master challenge viewpoint relatively tony marked describing constant africa discovered speed gun food literally
implies commented complex violates lacking methods christ island proud forms explains beat sister features imply
closer align stuck historic materials phone scale planet failure cry defense federal reputation noticeboard helped
additionally fiction retard southern spoken isnt spell desire smart reputable prose quoting merit papers criticisms
weak informative mom fails dedicated insults variety formatting sockpuppetry girls washington purely recorded cleanup
slow hindu evolution judgement christians produced chose chosen greetings italian moreover presence primarily physics
universe pic bully merging treat river historians edition forth hiding nov intellectual chris albums accordance
submission owned finish abusing offense loss items poorly hits charge unreliable thomas grounds leader resource causes
minimum technology valuable terrible behalf amazing commentary fascist unit indicates risk asia requirements relevance
awards experts cup mid iran victim motherfucker define vague talks publications everywhere convention capital bigger
criminal success absurd bye services lazy fucker core convinced highest unfair regarded breaking feels trivia deep
horse engine hmm assessment improvements submitted remaining professor wall nationality whilst operation unknown
nominate offended cast economic searching candidate promoting meantime aspect awesome render sports scum garbage petty
opened introduced staff machine prick queen deletions approved hidden greatest stage asian artists matches hadn ball
turkey sold testing intelligent smith displayed extent expansion turns vertical realise bear mixed terrorism connected
till redirected products indefinitely focused sun equivalent san allowing presumably destroyed movies redundant
demonstrate credibility worthless critics candidates millions viewed misunderstanding cleaning planning questionable
realized protecting print buddy starts expressed distinction calm polite dutch figured describes banning overview
directory moves blanking pain rewritten meaningful notification wizard documentation limit referencing preferred
occurred net satisfy placing christianity blind remark formed accurately freely elements threaten scholarly chart
catch statistics commenting virtually balanced typing jim internal communication runs alot blame filled authorities
writes titled property extensive reduce mental solve fashion alive served unrelated prominent administrative positions
correcting represented publisher leads dealt neo facebook species iranian invite precisely scene territory rubbish
thousand weekend grand talked trade sending trial scope kidding tips voting translate maps martin heavily genuine
picked racial suspected conventions tonight hair correction wise nasty respected butt updating conclusions ownership
accordingly screw chapter council locked trolls decent translated dozen cites proved threatened essay voted enemy
script contested submit nevertheless pig fictional undoing enter animal reviewer productive married pretend controlled
ends minded circumstances letters attributed options mike answers intentions cold contentious serves assure burn
invented mission politically decisions explanations managed proxy obscure archived favour wanting erase spot involving
effects reasonably charles quotation returned sea committed benefits complaints principle identical cease market
application aggressive founded training actor teams musical childish classic traditional similarly heck lede stone
origins independence holy ran scholar fucked bullying tables pieces newspapers warrant poll flying supporters conform
idiotic subjective joe stupidity bob publishing puppetry seconds brand footnote acknowledged vehicle hearing dropped
problematic ben scott founder argued administration summer gas division chicago doctor sleep declined inline
constitution potentially prime forgive addressing pattern broad historian principles ending encyclopaedia scientists
sales kinda patience corrections blow badly democracy writers subsequent causing perform responses rename nationalist
spamming tries joined arms spending relations represents flight homo register encouraged beautiful hundred pissed
frank alter jimmy speaks checkuser tree decades tiny novel nerd introduce completed lame definitions heritage medicine
permanent chief gold steve kinds steps relating licensing skin counts facilitate powerful strike stance reversion
sockpuppets indicated renamed pakistan procedure videos blatantly director sorts fox achieve substantially closing
district comprehensive pull speaker deeply suit rare republican yourselves lady diffs forums retired passage turning
symbol publish depth enemies denied soldiers persian disease tea selecting smaller copyrights contrast amounts
institute qualifies watched drama losing dig vandalise broke conformance fundamental convince flow leaders
disagreement memory unreferenced christmas winning admitted weasel libel practices rarely korean receiving backed
falls requirement engaging harass organisation korea unbiased agrees jones fraud remind porn sadly oil suicide audio
alternate wonderful entity contained management plays regional sees instances fourth survey alex aircraft fred
recognition participating crimes indication rejected lacks declared expression holding morons herself sole trip
victims laid permitted constitute carried route settled participants importantly hatred holocaust effective regularly
accident census opposing ashamed whore meaningless pending adopted leaves condition ice disgrace saved anal oct
pleasure handled hypocritical pump depends creative reflects giant responsibility taught meeting adminship elections
eating seeking fresh permanently demonstrated card worldwide utterly load expanding arts bits dangerous conflicts bag
greeks acknowledge occupation seperate hero windows citizens cleaned factor units invitation dumbass fantasy iraq
performed measure licensed nick gender surprise caption assumption acted increase guidance texas emphasis supreme tim
initially outright listening printed ideology presenting insulted participation representative precise victory
restoring liked hoax dated islands limits reduced complaining partisan sitting involve square dan modified nicely
firstly serbian historically integrity specifies blogs gang corrupt factually utter wild province spelled animals
server obtained trash douche texts shoot buildings owns distinct plans andrew communicate immature orders democratic
germans refused temporary sport finds capacity ultimately environment sell failing drug passing appearing terminology
significantly bank typically solved charges myth capable rush dishonest incivility awful thoroughly fly writings
visible occur fields disagrees kick inserting outcome insane cancer birthday cuz strict affect ring empty rational
lyrics minister biographical ive challenged promoted dad motives revisions merger sometime fish honor proposing
wrestling feet centre height tradition conditions hates incomplete privileges merits teach turks dream silence
congress recommended orange issued excessive effectively header genetic intentionally photograph stable apologise
construction descriptions defines spain consistently consequences jackson picking generic legally patient contemporary
fits clearer van attached proceed hall cost gotta worries dab wake releases organized scientist meanwhile greece
homosexual signs untrue harry florida rich moral motivated levels behave amongst centuries filed twat forgotten
portion loves creates judging renaming cult openly derived supply bothering replacing essential element revolution
altogether aim replying preference urge classical classes taste adult actors colour personality relative distance
stars qualified bridge padding barely socks selected museum wear values briefly hill impressed presents strictly
ethnicity bed interviews relate database stalker tactics solely sum censored supposedly hint performance journalist
flags arbitrary contacted host math enforcement bought messing daniel advised begun tough advertisement footnotes
representation complicated advanced synthesis holds falsely nationalism conference goodbye favorite gross lock jay
serving warming cooperation auto dislike assertions suddenly nose stations nominations bay setting thrown pressure
brings persistent lengthy inc naturally privacy spoke sucking baseball marks grade brothers newsletter train
confirmation fought reception humor dance railway prepared sight distinguish volume poster advocate mary window
combined academy prison yellow driving modify depending radical grateful violence meat wider approval viewpoints tax
hang vandalised authoritative announced educational swear copying selling henry socialist visited column concepts
poland eight lee shape puppets repeating italy surrounding appointed sensitive immediate afghanistan soul judgment
marriage narrow timeline regions assholes upper sep ruled ages ego answering pretending incidentally query hat stays
publicly computers firm replies labeled coast decade agent kiss proving sided virgin resulted defence procedures
assist indefinite arse questioned daughter objects denial ruling magic harder yep goals speakers likewise blanked
observation descent assumptions youre default differently notion mix audience collaboration indicating updates climate
applicable popularity formatted invalid verification enforce pasted namely comparing nickname temporarily severe eric
genocide considerable anger programs planned interpret volunteer abused semitic censoring implying vice ukraine
interpreted price consistency phrases joseph singer golden puts profit fell reveal considers factors extended
perceived seemingly dogs confirms miles arabic massacre amazon covering participated scared hebrew guessing gallery
devoted subsequently journals dozens microsoft studio door typo elected exchange roots banner growing universal
fatuorum circle hominem simplified tour generation exposed driven lastly fame navy unusual monkey reconsider drugs
genres mirror courtesy avoided sufficiently joining ship troops plz wind absence entertainment endless clarified
coward believing erased adam shove travel incorporated macedonia messed armenian userspace pushed satisfied
reliability confuse operating preferences raw resulting universities observed evident headline ryan monitor influenced
copies surface signing deemed parent serbia paying matt marketing duplicate scotland aid violent extensively walk
occasionally freak slowly myspace reversions revealed entered punishment path precedent lay noting controversies thin
families worded moon comply lately studying kicked overly educated continually lucky rollback jokes scheme ambiguous
introducing cell hostile judaism explicit replacement unfounded faced deliberate rise guardian actively remained
lawyer combination loving automated sweet terrorists wrongly legend excuses scottish layout colors newly unhelpful
pride flat humans frustrated wearing kevin deaths singles manage pics rating unblocking partial needing findings
prince anime bound malicious ultimate mexico fairness cellspacing digital portions nope illustrate kosovo corporate
homosexuality locations georgia shooting cutting thankyou palestinian elaborate lesson evening begins boxes reverse
sorted superior hip teacher officer misinformation pink engineering theres spreading iron grant financial manager bird
bots conducted unfortunate bite notify cabal tolerated bomb deletes score competition geography citizen sue alumni
heat compliance involves ukrainian comic processes stress contradictory frustrating broadcast worried offend russians
hunt regime academics classification exclusive romanian nationalistic minds camp countless protest expertise erroneous
mentally religions charts youth hypocrisy ordinary throwing economy contacting contrib exceptions maintained liberals
disregard deserved guns paris basement treating mexican researched handed denying thorough subsection achieved
inspired swedish dynamic debating occasions disrupt brilliant promotes expires drink validity partially offence hereby
coincidence undone sunday discography etymology userboxes oxford offering multi bored prohibited clown fools store
ping edward wanker weapons raising photographs douchebag prejudice evidently smile deals andy passes intervention
index convert bin weapon subpage destruction defining parliament situations holiday notified pertinent attribution
incorrectly restrictions lifted breach gather hypocrite allegation disagreements pseudo explore offers institution
documentary boring cyber recognised stats dismissed developing bug bout sitush bull mainpagebg quotations ordered
straw bitches pants safety jobs conclude girlfriend combat debates bizarre motivation researching logging practical
mode lied precious suppress teaching sets foul respective revised quiet sooner spin employee tons questioning stephen
experiments boss mountain amusing dave connections ironic codes communism emailed johnson frame browser advantage
roughly workers sky macedonian communities virginia sanctions examine pulled zionist sensible harsh jumped legacy
bogus improper avoiding insight wasnt serbs untagged actress rely linguistic spite muhammad alternatively airport sigh
disney ian containing webpage clubs interpretations corner pope pity rant applying demonstrates losers brian spring
guard saturday delivered lake drawn refusing accessible plant cunts pleased syria atheist communists consists unaware
politician outline discover models nonetheless corporation saint attended liberty imperial fantastic filling fed
observations collaborative finger credited harmful presume affected removes nominating branch incredibly mature
command hop mathematical arrogance grasp saving stalin affiliated toronto singh sam punished headings crisis dennis
infoboxes forbidden successfully wikiprojects expired territories difficulty suffer everyday touched shorter studied
raped coin surprising select driver foolish incorporate hospital zealand discusses classified slight regret loose roll
commission francisco arabs unwarranted pronunciation knock omitted noteworthy ottoman exclusively con increased
convicted danger clarity boston biology bang etiquette faster download divided courts phenomenon plagiarism crying
syntax tribes settle sing britannica grown ranking nigga races laughable brazil awarded unreasonable experiences
abortion slightest spare infringement inclined tied filter orthodox mobile attend knowledgeable temple camera strength
convey tech functions presentation towns scandal occupied communications ray damaging opponents bulgarian counted
apple edge pacific yea proposals searched jeff visual traffic string movements duty wave borders crew increasing
distribution archiving pen percent visitors exercise damned ethics loved cars deciding dot breath activist invasion
michigan identifying terribly headed histories surname monster portuguese resort contract infinite wishing oldest
tower fired resistance outdated mod weather schedule bus constructively psychology senior casual criticized
contradict credits sharing alien adopt volunteers younger lover rose implied disagreed blah ruin rewriting foot nom
valley crash pursue politely arguably inconsistent investigate splitting attract doom simon ideal tracks acceptance
notably substance cum oops officers terror scare transcluded outrageous retain newbie jerusalem generate sought
broader grey championship devil rated versus phase queer sarah croatian politicians urban selective adequate selection
summarize crossed userbox specifics khan christopher reject hes dickhead rough genius ron hobby duck misuse captain
theme egypt producer passages cricket priority incompetent concise flawed hahaha endorse motion grandfather formally
smell journalism differ maintenance gods succeed disrupting perception dollars albeit vanity virtual upcoming rome
anytime kings excluded discovery comics falling alan legit burden havent misunderstood engines asks magazines occasion
cheap reliably cycle dialogue slander battles dicks phil trusted contradiction declare rob caste accepting descriptive
winners crack shitty switch clarifying queries extend pertaining pair isles listings chances maintaining junk crucial
congrats reform uncited reaching scientology afterwards affairs listas goodness subst practically architecture
syndrome salt armed representing disturbing vision aug hook honesty tends twisted stalk jackass wisdom appropriately
textbook uninvolved grammatical emails alexander bombing searches postings widespread orphaned clause gained refuses
formula marine arrived liars overwhelming bell discrimination impressive insisting imposed concrete decides obsessed
warrior supplied painting vietnam bastards returns sample ruining semitism nuclear drunk filthy insignificant
estimates newer counting occurs dialect rolling slavery triple reinstated choosing presidential stopping persist
bearing jersey defeat plane returning defamatory partly recording albanian offline platform institutions wholly
dictator rick anyhow credentials goddamn grew stock logs minimal winter bodies handling struck soap soccer operations
unsupported confirming destroying solutions guest chicken criticize doubts emotional impose vagina pedophile chain
clinton beach rank guarantee cheatsheet humour billion governments targeted degrees racists scholarship attorney folk
row weigh unsure orientation moore jumping snow handful tip ride minorities trace patrol dynasty admittedly von dating
nine objected fundamentally abide reminder root meanings rankings biological revenge indians alert ratio growth
manually wit unsubstantiated scroll turkic twitter employed teh hilarious employer baseless remotely ali caution
viewing freaking masters monday sticking alternatives friday dropping dismiss mouse fork repost reversed hypothesis
stretch expecting dragon arrest incidents aired asserted concensus pal launched prize patterns increasingly roger
suspicious pray earned discouraged lawsuit narrative dying cats nut agency musicians techniques feed sysop praise lift
arm sounding temperature inherently bro ancestors ppl ears hindus stronger loud hungarian appearances economics rot
arthur withdraw converted robot alongside storm badge traditions obtain electronic interaction desired bare patent
casualties caps disappeared unprotect trick stops extremist governor coffee suffice tendency quantum leftist paranoid
owners davis crusade jealous scratch automatic specially charged dunno crowd max convincing satisfaction strategy
editions vol shop clever hated formation abilities progressive stamp fighter reflected authentic inaccuracies cute
lick hating nuts readily angeles facility outlets tolerate mutual noun incapable urgent medal boards hack mac welsh
confidence louis thick beneficial submitting exclude analogy plausible resolving strikes brave teachers unfree
williams pronounced realised fancy highlight tedious executive respectfully castle sciences jayjg styles keen
residents systematically carrying bugs pasting recognise hopes disabled sovereign wasted resident associate approve
gary consult moot compliment annual commit founding contention calendar desist campus fort ourselves blacks namespace
confident disaster enjoyed plural pls researchers canvassing maximum habit commonwealth celebrity assessed encountered
croatia serb mathematics everytime ruined transfer operate barack heaven gaming hanging grave guilt bullet followers
establishing continuously incoherent columbia ministry anna surgery spaces smear fruit jul rugby faggots unfamiliar
definite angel philosophical variation sweden harrassment viable industrial transparent mighty awhile noble kong labor
conversations hotel fingers musician harvard wondered struggle checks illogical restricted screwed cos complained
formerly fascinating seasons steal photographer generations scan shocked thereby walking squad expose assembly
disappointed uncle implemented visiting reserve officials icon ideological approximately welcomed session unfairly
fascism moderator operated beings labelled stadium clicked evolved ocean crown champion breaks personnel silver
lecture accidentally tropical verse adults wilson forcing walter husband righteous virus characteristics pigs
unilaterally clueless frustration unjustified transferred estimate relates festival toilet affiliation santa ancestry
biblical translations retards annoyed armenians equipment becuase oregon comedy abuses requiring earliest trained
inferior hardcore justin parameters amended allies screenshot seat producing appealing borrowed environmental
offending happily establishment interfere refered originated eliminate rumors purchase kim disorder conversion costs
sri glass adequately witch mystery concentrate fuel nevermind norman servers supporter citizenship concluded sincere
lovely collaborate pilot proportion vicious demanding apologized mum vile device carries laughing protocol focusing
wealth cash ton sexy par journalists naked suspicion suited misrepresentation cow glance cells irony ross parameter
fags cultures sean wolf buying angle loads civilians basketball witness jail subtle rumor retained labels torture pack
daddy mainspace neck yahoo informing lab unencyclopedic nationalists whining technique presently joint suffered
percentage moronic gene favourite collect duke keyboard heh illustrates boyfriend guitar construed mechanism
insistence adoption naval pakistani strip presidents emperor warranted hockey treaty convenient shock userpages
wikipedias cocksucker kelly princess sexuality entities facto observer ties redirecting floor port sorting ultra
chemical assigned samuel contradicts understandable knight chemistry dies expressing catholics aviation stolen ann
shopping kennedy beside bullies crappy fucks dat anus wikipeida pompous uneducated bigoted motherfucking pedia
moderators homophobic miserable gays nerds lesbian naughty bigot sucked sucker commie geek nerve hungry illiterate
babies noob poop curse hahahaha dipshit niggers mama fascists brains pissing mothers scumbag fart clowns idiocy sack
yank jerks pile asses donkey homosexuals filth shithead arsehole rat fuckers thug guts feces stinks rapist hater poo
fucken stfu fuk turd slut cocks mommy bitching bum hairy kissing kike fuckhead smelly cocksucking peice licking
imbecile fuckwit dumbest fucktard wiki mustn
"""
# fmt: on

Edit = tuple[int, int, str]
"""From, to, and what comes in place of it."""

Found = tuple[list[Edit], set[str]]
Step = Callable[[str], Found]
"""What a step would change, in order and without overlaps, and the evasions that it saw."""


@dataclass(frozen=True)
class Normalized:
    """A normalized text, and the way back to the original one.

    :param offsets: for each character of ``text`` the index in the original of the character that it came from.
    :param evasions: names out of :data:`EVASIONS`, sorted.
    :param original_length: in characters.
    """

    text: str
    offsets: tuple[int, ...]
    evasions: tuple[str, ...]
    original_length: int

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Where ``text[begin:end]`` stands in the original, with what was taken out of it.

        :raises ValueError: when the span does not lie in ``text``.
        """
        size = len(self.text)
        if not 0 <= begin <= end <= size:
            raise ValueError(f"the span [{begin}, {end}) does not lie in the normalized text, [0, {size})")
        if begin == end:
            at = self.offsets[begin] if begin < size else self.original_length
            return at, at
        last = self.offsets[end - 1]
        while end < size and self.offsets[end] == last:  # one character became several
            end += 1
        return self.offsets[begin], self.offsets[end] if end < size else self.original_length


def normalize(text: str) -> Normalized:
    """Normalize one text, with offsets and the evasions that were found. Takes every ``str``, lone surrogates too."""
    plain, offsets = text, list(range(len(text)))
    evasions: set[str] = set()
    for plain, edits, found in _changes(text, _steps(text)):  # noqa: B007
        offsets = _move(offsets, edits)
        evasions |= found
    return Normalized(plain, tuple(offsets), tuple(sorted(evasions)), len(text))


def normalize_text(text: str) -> str:
    """The text of :func:`normalize`, without its offsets: plain text costs only a look at its characters."""
    return _last(text, _steps(text))


def normalize_texts(texts: Sequence[str]) -> list[str]:
    """As :func:`normalize_text` on each, in less time: they are looked at together."""
    if len(texts) < FEW:
        return [normalize_text(text) for text in texts]
    done = list(texts)
    for start in range(0, len(texts), TOGETHER):
        for i, steps in _steps_of_many(texts[start : start + TOGETHER]).items():
            done[start + i] = _last(texts[start + i], steps)
    return done


def _last(text: str, steps: Sequence[Step]) -> str:
    for text, _, _ in _changes(text, steps):  # noqa: B007, B020
        pass
    return text


def _changes(text: str, steps: Sequence[Step]) -> Iterator[tuple[str, list[Edit], set[str]]]:
    """The text after each step that changed it, what that was, and the evasions it saw.

    :param steps: of the text, as :func:`_steps` says.
    """
    for _ in range(PASSES if steps else 0):
        changed = False
        for step in STEPS:
            if step not in steps:
                continue
            edits, found = step(text)
            if edits:
                text = _apply(text, edits)
                steps = (*_steps(text), _spacing)  # whose quick look sees only letters that stand close
                changed = True
                yield text, edits, found
        if not changed:
            return


def _steps(text: str) -> Sequence[Step]:
    """Those of :data:`STEPS` that may change ``text``, as a look at the kinds of its characters shows: mostly none.

    It is the cost of a plain text, so each question is put to the string functions of bytes, which are quick; where
    two bytes beside each other are asked for, first whether the rarer one is there at all.
    """
    found: list[Step] = []
    letters = text.encode("ascii", "replace").lower()
    kinds = letters.translate(_KINDS)
    if b"o" in kinds:
        found.append(_characters)
    if not text.isascii() and (found or _is_disguised(text)):
        found += _FOR_OTHER_LETTERS
    if "&" in text:
        found.append(_entities)
    if _ALONE.search(b" %b " % kinds.translate(_AS_LETTERS)):
        found.append(_spacing)
    if (
        (b"0" in kinds and (b"a0" in kinds or b"0a" in kinds))
        or (b"!" in kinds and (b"!a" in kinds or b"!0" in kinds))
        or (b"|" in kinds and (b"a|" in kinds or b"|a" in kinds))
    ):
        found.append(_leet)
    if b"\0\0" in _repeats(letters, b"\0\0"):
        found.append(_stretching)
    return found


def _is_disguised(text: str) -> bool:
    """Whether something beyond ASCII may be changed."""
    foreign = text.encode("utf-8", "surrogatepass").translate(None, _ASCII).decode("utf-8", "surrogatepass")
    return bool(
        _HAS_ODD.search(foreign)
        or _HAS_LOOKALIKE.search(foreign)
        or (_OTHER_TRIPLE.search(foreign) and _OTHER_TRIPLE.search(text))
    )


def _steps_of_many(texts: Sequence[str]) -> dict[int, list[Step]]:
    """As :func:`_steps` for each of many texts, by their place; only those that have steps.

    One look at all of them, one behind the other: for a character what it is and what may not stand behind it are bits
    of one byte (:data:`_LOOK`).
    """
    found: dict[int, list[Step]] = {}
    rows = [text.encode("ascii", "replace") for text in texts]
    data = b"".join([_BETWEEN, *(row + _BETWEEN for row in rows)])
    starts = np.cumsum([len(row) + len(_BETWEEN) for row in rows])

    def add(step: Step, places: np.ndarray) -> None:
        for i in set(np.searchsorted(starts, places, side="right").tolist()) if places.size else ():
            found.setdefault(i, []).append(step)

    look = np.frombuffer(data.translate(_LOOK), np.uint8)
    kinds = look >> 3
    special = np.flatnonzero((kinds & _SPECIAL) != 0)
    if special.size:
        is_and = np.frombuffer(data, np.uint8)[special] == ord("&")
        add(_entities, special[is_and])
        add(_characters, special[~is_and])
    for i, text in enumerate(texts):
        if not text.isascii() and (_characters in found.get(i, ()) or _is_disguised(text)):
            found.setdefault(i, []).extend(_FOR_OTHER_LETTERS)
    gaps = (look & _GAP) != 0
    alone = gaps[:-2] & gaps[2:]
    alone &= (kinds[1:-1] & (_LETTER | _SIGN)) != 0
    places = np.flatnonzero(alone)
    add(_spacing, places[:-1][np.diff(places) <= 4])
    add(_leet, np.flatnonzero((look[:-1] & kinds[1:] & _BEHIND) != 0))
    small = np.frombuffer(data, np.uint8) | 32  # letters become small ones, and nothing else a letter
    same = small[1:] == small[:-1]
    same[:-1] &= same[1:]
    same[:-1] &= (kinds[:-2] & _LETTER) != 0
    add(_stretching, np.flatnonzero(same[:-1]))
    return found


def _repeats(letters: bytes, wanted: bytes = b"") -> bytes:
    """Zero bytes where a small letter and the next one are equal, so two of them where a third is, too.

    As one long number, over itself moved by a character.

    :param wanted: where this is in what only may be letters, it is looked at whether they are; mostly it is not there.
    """
    number = int.from_bytes(letters, "little")
    number ^= number >> 8
    same = number.to_bytes(len(letters), "little")
    if wanted not in same:  # mostly three spaces or dots are
        return same
    number |= int.from_bytes(letters.translate(_NO_LETTERS), "little")
    return number.to_bytes(len(letters), "little")


def _apply(text: str, edits: list[Edit]) -> str:
    parts: list[str] = []
    done = 0
    for begin, end, new in edits:
        parts += (text[done:begin], new)
        done = end
    return "".join([*parts, text[done:]])


def _move(offsets: list[int], edits: list[Edit]) -> list[int]:
    moved: list[int] = []
    done = 0
    for begin, end, new in edits:
        moved += offsets[done:begin]
        moved += (offsets[min(begin + i, end - 1)] for i in range(len(new)))
        done = end
    return moved + offsets[done:]


NOTHING: Found = ([], set())

# --- words

RANKS = {word: rank for rank, word in enumerate(WORDS.split())}
SHORT = frozenset("a i u of is it in on be as if or my an do so at me by no we up he am go us ok oh hi ur".split())
ENDINGS = ("s", "es", "d", "ed", "y", "ly", "er", "ers", "ing")


def _known(word: str) -> bool:
    """Whether a word in small letters is a common one, or one with a usual ending."""
    if word in RANKS:
        return True
    if not word.endswith(ENDINGS):
        return False
    return any(word.endswith(e) and len(word) - len(e) >= 3 and word[: -len(e)] in RANKS for e in ENDINGS)


# --- entities

# chains such as &amp;lt; come apart at once, or the result would be an entity again
_ENTITY = re.compile(r"&(?:(?:amp|AMP|#38|#x26|#X26);)*(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,9});")


def _entities(text: str) -> Found:
    if "&" not in text:
        return NOTHING
    edits = []
    for match in _ENTITY.finditer(text):
        if match[1][0] == "#" or match[1] in name2codepoint:
            new = html.unescape(f"&{match[1]};")
            edits.append((match.start(), match.end(), new))
    return edits, set()


# --- characters

_SPACES = frozenset(range(9, 14)) | {0x1C, 0x1D, 0x1E, 0x1F, 0x85}
_VISIBLE_FORMATS = frozenset(range(0x600, 0x606)) | {0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
_INVISIBLE = (
    frozenset((0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0))
    | frozenset(range(0x180B, 0x1810))
    | frozenset(range(0xFE00, 0xFE10))
    | frozenset(range(0xE0000, 0xE1000))
)
"""Beside the controls and format characters: joiners, fillers, variation selectors, tags."""

_OVERLAYS = frozenset(
    "\u0332\u0333\u0334\u0335\u0336\u0337\u0338\u035c\u035d\u035e\u035f\u0360\u0361\u0362"
) | frozenset(map(chr, range(0x20D0, 0x20F1)))
"""Marks that strike, underline or enclose a letter and are no accent of any language."""

_DECORATED = {
    **{chr(0x249C + i): chr(97 + i) for i in range(26)},  # in parentheses, which NFKC keeps
    **{chr(start + i): chr(65 + i) for start in (0x1F110, 0x1F150, 0x1F170) for i in range(26)},  # and white on black
}


def _plain(character: str, category: str) -> str:
    """The compatibility form, or the character itself where that would change the meaning or flood the text."""
    new = unicodedata.normalize("NFKC", character)
    if new == character or character in "\u2122\u2120\u00aa\u00ba" or "\u2044" in new or len(new) > 4:
        return character
    if len(new) > 1 and new[0] == " ":  # an accent that stands alone would move to the letter before it
        return character
    if category == "No" and new.isdigit() and "CIRCLED" not in unicodedata.name(character):
        return character
    return new


def _ranges(numbers: Iterable[int]) -> str:
    """The inside of a regular expression's character class, from ascending numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in spans)


def _tables() -> tuple[dict[str, str], str, str]:
    """What single characters become ("" for nothing), and the classes of the marks and of all that is looked at."""
    singles = {"\u2800": " "}  # an empty Braille cell
    marks = []
    for number in itertools.chain(range(0x20000), range(0x2F800, 0x2FA20), range(0xE0000, 0xE1000)):
        character = chr(number)
        category = unicodedata.category(character)
        invisible = number in _INVISIBLE or category in ("Cc", "Cf")
        if category in ("Cn", "Co") and not invisible:
            continue
        if category[0] == "M" or 0x1161 <= number <= 0x11FF:  # the vowels and finals of Hangul go with their initial
            marks.append(number)
        if invisible and number not in _SPACES and number not in _VISIBLE_FORMATS:
            singles[character] = ""
        elif category == "Cs":
            singles[character] = "\ufffd"
        elif number > 0x7F and category[0] != "M":
            new = _DECORATED.get(character) or _plain(character, category)
            if new != character:
                singles[character] = new
    # beyond the first plane one range is all: character classes with many ranges there are slow
    odd = [n for n in {*map(ord, singles), *marks} if n < 0x10000]
    return singles, _ranges(n for n in marks if n < 0x10000), _ranges([*sorted(odd), *range(0x10000, 0x110000)])


_SINGLES, _MARKS, _ODD = _tables()
_HAS_ODD = re.compile(f"[{_ODD}]")
_CLUSTER = re.compile(f"(?s:.)[{_MARKS}]+|[{_ODD}]")
_JOINERS = "\u200c\u200d"


def _characters(text: str) -> Found:
    if not _HAS_ODD.search(text):
        return NOTHING
    edits: list[Edit] = []
    found = set()
    for match in _CLUSTER.finditer(text):
        old = match[0]
        begin, end = match.span()
        if len(old) == 1:
            around = text[begin - 1 : begin], text[end : end + 1]
            if old in _JOINERS and all(c > "\u058f" for c in around):  # Persian, Hindi, families of emoji need them
                continue
            new = _SINGLES.get(old, old)
            if not new and begin and end < len(text) and not any(c.isspace() for c in around):
                found.add("zero_width")
        else:
            base, stripped = _without_marks(old)
            new = unicodedata.normalize("NFC", _SINGLES.get(base[0], base[0]) + base[1:])
            if stripped and base[0].isalpha():
                found.add("zero_width")
        if new == old:
            continue
        if new.isascii() and new.isalpha() and not old[0].isascii() and old[0] in _SINGLES:
            found.add("compatibility")
        edits.append((begin, end, new))
    return edits, found


def _without_marks(cluster: str) -> tuple[str, bool]:
    """A character with only the marks that a language may put on it, and whether others were taken off."""
    base = cluster[0]
    marks = [c for c in cluster[1:] if c not in _SINGLES and c not in _OVERLAYS]
    latin = base < "\u0590" or "\u1d00" <= base < "\u2e00" or base > "\ufb00"
    if latin:  # an accent that is written with a letter makes one character with it; beside it there is room for one
        kept = marks if len(unicodedata.normalize("NFC", base + "".join(marks[:5]))) + len(marks[5:]) <= 2 else []
    else:
        kept = marks[:4]
    return base + "".join(kept), len(kept) < len(cluster) - 1


# --- homoglyphs

_LOOKALIKES = {
    "a": "аɑαᴀ⍺", "b": "Ьвʙƅᖯ", "c": "сϲςᴄҫ", "d": "ԁɗᴅժ", "e": "еєҽᴇεɛҿ", "f": "ꜰƒϝғքꬵ", "g": "ɡցɢԍɠ",
    "h": "һհʜнɦҥ", "i": "іɩιɪɨ", "j": "јϳᴊʝ", "k": "кκᴋĸҝқ", "l": "ӏʟɭ", "m": "мᴍɱӎ", "n": "пηոռɴɲƞ", "o": "оοօσᴏө",
    "p": "рρᴘƿϼ", "q": "ԛգզ", "r": "гᴦʀɼɾꭇ", "s": "ѕꜱʂ", "t": "тτᴛƭ", "u": "υսᴜʊц", "v": "ѵνᴠʋ", "w": "ԝωѡᴡաɯш",
    "x": "хχҳ", "y": "уүγʏყӱ", "z": "ᴢʐʑ",
    "A": "АΑᎪᗅꓮ", "B": "ВΒᏴᗷꓐ", "C": "СϹᏟꓚ", "D": "ᎠᗞꓓԀ", "E": "ЕΕᎬꓰЄ", "F": "ϜᖴꓝҒ", "G": "ԌᏀꓖ",
    "H": "НΗᎻꓧҺᕼ", "I": "ІΙӀᏆꓲ", "J": "ЈᎫꓙͿ", "K": "КΚᏦꓗ", "L": "ᏞᒪꓡԼ", "M": "МΜᎷꓟϺ", "N": "Νꓠ", "O": "ОΟՕꓳ",
    "P": "РΡᏢꓑ", "Q": "ԚႭ", "R": "ᎡᏒꓣ", "S": "ЅՏᏚꓢ", "T": "ТΤᎢꓔ", "U": "Սꓴ", "V": "ѴᏙꓦ", "W": "ԜᎳꓪШ", "X": "ХΧꓫ",
    "Y": "УΥҮꓬ", "Z": "ΖᏃꓜ",
}  # fmt: skip
_FAUX = {
    "a": "дλ", "b": "бьъβß", "d": "δđðď", "e": "ёэзξ", "h": "ħћђ", "i": "їı", "l": "ł", "n": "илйπ",
    "o": "øфθю", "p": "þ", "r": "я", "t": "ŧ", "u": "иμч", "w": "щ", "x": "ж", "y": "чў", "z": "ζ",
    "A": "ДΛΔ", "B": "Б", "D": "Đ", "E": "ЭΣЗ", "H": "Ħ", "L": "Ł", "N": "ИЙП", "O": "ØФΘЮΩ", "R": "ЯГ", "U": "ЦИ",
    "X": "Ж", "Y": "ЧΨ",
}  # fmt: skip
"""Letters that only resemble, and letters that Latin alphabets really have: read so only where that gives a word."""

_OTHERWISE = {"l": "ӏІΙӀꓲ", "i": "ӏ", "g": "г", "n": "и", "N": "И"}
"""A second reading, tried where the first gives no word."""

_STRICT = {ord(c): latin for latin, alike in _LOOKALIKES.items() for c in alike}
_ALL = {**{ord(c): latin for latin, alike in _FAUX.items() for c in alike}, **_STRICT}
_SECOND = {**_ALL, **{ord(c): latin for latin, alike in _OTHERWISE.items() for c in alike}}
_HAS_LOOKALIKE = re.compile(f"[{_ranges(sorted(_ALL))}]")
_WORD = re.compile(r"[^\W_]+")
_LATIN = re.compile(r"[A-Za-z]")
_NATIVE = re.compile(r"[\u0370-\u1cff\u1f00-\u1fff\u2c00-\uabff]")
"""Letters of other scripts than Latin."""


def _homoglyphs(text: str) -> Found:
    if text.isascii() or not _HAS_LOOKALIKE.search(text):
        return NOTHING
    edits: list[Edit] = []
    pure = []  # words of look-alikes alone
    native = 0  # other words of such scripts, which are none in Latin letters
    for match in _WORD.finditer(text):
        word = match[0]
        if word.isascii():
            continue
        read = word.translate(_ALL)
        if not _known(read.lower()) and _known(word.translate(_SECOND).lower()):
            read = word.translate(_SECOND)
        if not _LATIN.search(word):
            if len(word) >= 3 and _known(read.lower()):
                pure.append((match.start(), match.end(), read))
            else:
                native += _NATIVE.search(word) is not None
        elif len(word) >= 3 and read != word:
            if not _known(read.lower()):
                read = word.translate(_STRICT)
                if read == word or _NATIVE.search(read) or _is_formula(word):
                    continue
            latin = "".join(_LATIN.findall(word))
            shouted = len(latin) > 1 and latin.isupper()
            edits.append((match.start(), match.end(), read.upper() if shouted and read.isascii() else read))
    latin_letters, pure_letters = len(_LATIN.findall(text)), sum(len(read) for *_, read in pure)
    if len(pure) > native and latin_letters * (1 if native else 2) > pure_letters:
        edits = sorted(edits + pure)
    return edits, {"homoglyph"}


def _is_formula(word: str) -> bool:
    """A Greek letter beside capitals, as in TNFα."""
    other = _LATIN.sub("", word)
    return "".join(_LATIN.findall(word)).isupper() and other.islower() and other[:1] in "αβγδεκ"


# --- spacing

_SEPARATOR = r"[.\-_*~^/|,+=:;#\\\u2022\u00b7\u2013\u2014]"
_ANY_GAP = r"[\s.\-_*~^/|,+=:;#\\\u2022\u00b7\u2013\u2014]"
_STARTING = rf"{_SEPARATOR}{{1,3}}[^\W_]"
"""Behind a letter: it begins something of its own, such as an abbreviation."""

_HAS_SPACED = re.compile(rf"{_ANY_GAP}[^\W_]{_ANY_GAP}{{1,8}}[^\W_](?![^\W_])")
_SPACED = re.compile(
    r"(?<![^\W_])(?<![@$&])(?<![^\W_]['\u2019])[^\W_](?:"
    rf"(?P<gap> ?{_SEPARATOR} ?)[^\W_@$](?:(?P=gap)(?:[^\W_]|[@$]))+"
    rf"|\s{{1,8}}[^\W_](?!{_STARTING})(?:\s{{1,8}}(?!I['\u2019])(?:[^\W_]|[@$])(?!{_STARTING}))+"
    r")(?![^\W_]|[@$])"
)
_DIGITS = str.maketrans("013457@$", "oieastas")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_LONGEST = 20
_MOST_SPACED = 1000
"""So many letters that stand alone are read in a text: more than a model takes in, and bounded in time."""


def _spacing(text: str) -> Found:
    if text.isascii():
        kinds = text.encode("ascii").translate(_KINDS).translate(_AS_LETTERS)
        if not _THREE_ALONE.search(b" %b " % kinds):
            return NOTHING
    if not _HAS_SPACED.search(text):
        return NOTHING
    edits: list[Edit] = []
    left = _MOST_SPACED
    for match in _SPACED.finditer(text):
        if left <= 0:
            break
        places = [i for i in range(match.start(), match.end()) if text[i].isalnum() or text[i] in "@$"][:left]
        left -= len(places)
        if len(places) < 3:
            break
        widths = [_width(text[a + 1 : b]) for a, b in itertools.pairwise(places)]
        narrow = min(widths)
        start = 0
        for stop in range(1, len(places) + 1):
            if stop < len(places) and widths[stop - 1] == narrow:
                continue
            group = places[start:stop]
            start = stop
            letters = "".join(text[i] for i in group)
            words = _joined(letters, match["gap"] is None, "." in (match["gap"] or ""), len(group) < len(places))
            at = 0
            for size in words:
                for a, b in itertools.pairwise(group[at : at + size]):
                    edits.append((a + 1, b, ""))
                at += size
                if at < len(group) and match["gap"] is not None:
                    edits.append((group[at - 1] + 1, group[at], " "))
    return edits, {"spacing"}


def _width(gap: str) -> int:
    return len(gap) + 8 * ("\n" in gap)


def _joined(letters: str, spaces: bool, dotted: bool, apart: bool) -> list[int]:
    """The lengths of the words that single letters spell; nothing where they had better stay apart.

    :param spaces: nothing but spaces stands between them.
    :param dotted: they stand with dots, as abbreviations do.
    :param apart: they are one of several such groups with wider gaps between them: a text that is all spaced.
    """
    word = letters.lower().translate(_DIGITS)
    real = sum(map(str.isalpha, letters))
    if 3 * real < 2 * len(letters):
        return [len(word)] if real > 1 and _known(word) else []
    if len(word) == 2:
        return [2] if apart and word in SHORT else []
    if len(word) < 3:
        return []
    if _known(word):
        return [len(word)]
    words = _segments(word)
    if words and (max(words) >= 3 if spaces else len(word) >= 6 and min(words) >= 3):
        return words
    if letters.isupper() and (spaces or dotted) or word in _ALPHABET:  # an abbreviation, a list
        return []
    return [len(word)] if len(word) >= 4 and _is_pronounceable(word) else []


def _is_pronounceable(word: str) -> bool:
    vowels = sum(c in "aeiouy" for c in word)
    return len(word) <= 5 * vowels and vowels <= 0.7 * len(word) and len(set(word)) >= 3


def _segments(word: str) -> list[int]:
    """The lengths of the common words that ``word`` is likeliest made of, by frequency; nothing where it is not."""
    best: list[tuple[float, int]] = [(0.0, 0)]  # for each end: the cost so far, and the length of the last word
    for end in range(1, len(word) + 1):
        options = [(math.inf, 0)]
        for size in range(1, min(end, _LONGEST) + 1):
            before = best[end - size][0]
            if before < math.inf:
                options.append((before + _cost(word[end - size : end]), size))
        best.append(min(options))
    sizes: list[int] = []
    end = len(word)
    if best[end][0] == math.inf:
        return []
    while end:
        sizes.append(best[end][1])
        end -= best[end][1]
    return sizes[::-1]


def _cost(word: str) -> float:
    if len(word) < 3:
        return 6.0 - len(word) / 2 if word in SHORT else math.inf
    if word in RANKS:
        return math.log(RANKS[word] + 20)
    return math.log(len(RANKS)) + 2 if _known(word) else math.inf


# --- leet

_FREQUENT = 300
"""Words up to this rank are read even where the letters might be a product's."""

_SIGNS = {
    "0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i", "|": "il",
    "8": "b", "9": "g", "6": "gb",
}  # fmt: skip
_HAS_LEET = re.compile(r"[0-9@$|!](?:(?=[A-Za-z])|(?<=[A-Za-z][0-9@$|])|(?<=!)(?=[0-9@$]))")
_SPACE = re.compile(r"\s")
_ADDRESS = re.compile(
    r"://|^www\.|[\w.]@[\w-]+\.[A-Za-z]|\.(?:com|net|org|edu|gov|co|uk|de|html?|php|jpe?g|png|gif|svg|pdf)\b|^#", re.I
)
_TOKEN = re.compile(r"[A-Za-z0-9@$!|]+")
_QUANTITY = re.compile(
    r"[0-9]*(?:1st|2nd|3rd|[04-9]th|1[123]th)"
    r"|[0-9]+(?:s|am|pm|[kcm]?m|[km]?g|ml|[kmgt]b|k?hz|h|hrs?|min|sec|px|pt|ft|in|lbs?|oz|x|k|bn?|yo|yrs?|er)?"
    r"|[A-Z]{1,2}[0-9]+|[A-Z][0-9]{2,}[A-Z]|v[0-9]+|[0-9]+[A-Z]|[0-9]{3,}[A-Za-z]+|[A-Za-z]+[0-9]{3,}"
)
_SPELT = re.compile(
    r"[A-Z]?[a-z]+(?:[01345789@$!]{1,2}[a-z]+){2,}[0134579@$]?|[A-Z]?[a-z]+[01@$][a-z]+"
    r"|[A-Z]{2,}(?:[01345789@$!]{1,2}[A-Z]+){2,}"
)
_HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")


def _leet(text: str) -> Found:
    # mostly nothing can be read: a look at all that has other characters than letters, wherever it stands
    tokens = text.encode("ascii", "replace").translate(_TOKENS_ALONE).split()
    if not any(_may_be_read(token) for token in tokens if not token.isalpha() and not token.isdigit()):
        return NOTHING
    edits: list[Edit] = []
    end = 0
    while hit := _HAS_LEET.search(text, end):
        start = hit.start()
        while start and not text[start - 1].isspace():
            start -= 1
        gap = _SPACE.search(text, hit.end())
        end = gap.start() if gap else len(text)
        chunk = text[start:end]
        if _ADDRESS.search(chunk):
            continue
        for match in _TOKEN.finditer(chunk):
            token = match[0]
            if len(token) < 3 or len(token) > _LONGEST or token.isalpha():
                continue
            at = start + match.start()
            edits += ((at + begin, at + stop, read) for begin, stop, read in _readings(token))
    return edits, {"leet"}


@functools.lru_cache(1 << 13)
def _may_be_read(token: bytes) -> bool:
    """Whether :func:`_leet` reads a word in ``token``, when it comes to it."""
    return 3 <= len(token) <= _LONGEST and bool(_readings(token.decode("ascii")))


def _readings(token: str) -> list[tuple[int, int, str]]:
    """What is read of a token, and where in it: nothing or one."""
    stop = len(token.rstrip("!|"))
    read = _read(token[:stop])
    if read:
        return [(0, stop, read)]
    if token[0] != "!":
        return []
    begin = len(token) - len(token.lstrip("!"))
    read = _read(token[begin:stop])
    return [(begin, stop, read)] if read else []


@functools.lru_cache(1 << 13)
def _read(token: str) -> str | None:
    """The word that letters and signs spell; ``None`` where they spell none, or had better stay."""
    letters = sum(map(str.isalpha, token))
    if token[:1] == "|":
        return None
    if len(token) < 3 or letters == len(token) or _QUANTITY.fullmatch(token):
        return None
    if letters == 0 and not set(token) <= {"@", "$"}:
        return None
    options = [_SIGNS.get(c, c) if not c.isalpha() else c.lower() for c in token]
    if any(o.isdigit() for o in options):  # 2 stands for no letter
        return None
    words = ["".join(w) for w in itertools.islice(itertools.product(*options), 8)]
    word = min(
        (w for w in words if _known(_TRIPLE.sub(r"\1", w))), key=lambda w: RANKS.get(w, len(RANKS)), default=None
    )
    if word is not None:
        head, tail = token[:-1].lower(), token[1:].lower()
        if len(token) == 3 and token[0].isupper() and RANKS[word] >= _FREQUENT:  # L3d
            return None
        if token[-1] == "5" and head.isalpha() and _known(head):  # the fifth of something
            return None
        if token[0] == "@" and tail.isalpha() and _known(tail):  # a name that is spoken to
            return None
    elif _SPELT.fullmatch(token) and not _HEX.fullmatch(token) and letters * 2 >= len(token):
        word = words[0]
        if not _is_pronounceable(word):
            return None
    if word is None:
        return None
    shouted = letters > 1 and token.upper() == token
    return "".join(c if c.isalpha() else new.upper() if shouted else new for c, new in zip(token, word, strict=True))


# --- stretching

_TRIPLE = re.compile(r"([^\W\d_])\1{2,}", re.I)
_OTHER_TRIPLE = re.compile(r"([\u0080-\U0010ffff])\1\1")
_ZEROS = re.compile(rb"\0{2,}")
_ROMAN = re.compile(r"[ivxlcdm]+", re.I)


def _stretching(text: str) -> Found:
    words: dict[tuple[int, int], list[tuple[int, int]]] = {}
    start = end = 0
    for begin, stop in _stretched(text):
        if begin >= end:
            start, end = _word_around(text, begin)
        words.setdefault((start, end), []).append((begin - start, stop - start))
    edits: list[Edit] = []
    for (start, end), runs in words.items():
        word = text[start:end]
        if len(set(word.lower())) == 1 or not word.isalpha() or _ROMAN.fullmatch(word):
            continue
        for (begin, stop), keep in zip(runs, _kept(word.lower(), runs), strict=True):
            edits.append((start + begin + keep, start + stop, ""))
    return edits, {"stretch"}


def _stretched(text: str) -> Iterable[tuple[int, int]]:
    """Where a letter stands three times or more in a row."""
    if text.isascii():
        # a run of two equal bytes and more is one of three letters and more
        return [(run.start(), run.end() + 1) for run in _ZEROS.finditer(_repeats(text.lower().encode("ascii")))]
    lower = text.lower()
    letters = [c for c in _ALPHABET if c * 3 in lower]  # far faster than one expression for all
    if letters or _OTHER_TRIPLE.search(text):
        return [run.span() for run in _TRIPLE.finditer(text)]
    return []


def _word_around(text: str, at: int) -> tuple[int, int]:
    while at and text[at - 1].isalnum():
        at -= 1
    word = _WORD.match(text, at)
    assert word is not None
    return word.span()


def _kept(word: str, runs: list[tuple[int, int]]) -> tuple[int, ...]:
    """How many letters of each run are kept, one or two: what gives a common word, else one."""
    if len(runs) <= 4:
        for sizes in itertools.product((2, 1), repeat=len(runs)):
            done = 0
            parts = []
            for (begin, end), size in zip(runs, sizes, strict=True):
                parts.append(word[done : begin + size])
                done = end
            short = "".join(parts) + word[done:]
            if len(short) <= _LONGEST and (_known(short) if len(short) > 2 else short in SHORT):
                return sizes
    return (1,) * len(runs)


STEPS: tuple[Step, ...] = (_entities, _characters, _homoglyphs, _spacing, _leet, _stretching)


def _kind(character: str) -> str:
    if character.isalpha():
        return "a"
    if character in "0123456789@$":
        return "0"
    if character in "!|":
        return character
    if character in _SINGLES:
        return "o"
    return " " if re.match(f"{_ANY_GAP}|[?]", character) else "."  # what is not ASCII comes as "?"


_KINDS = "".join(map(_kind, map(chr, range(128)))).ljust(256).encode()
"""Letter, sign, exclamation mark, bar, what never stays, gap, and the rest."""

_AS_LETTERS = bytes.maketrans(b"0|", b"a ")
_ALONE = re.compile(rb" a (?:a | a |. a )")
"""A character between gaps, and soon another one."""

_THREE_ALONE = re.compile(rb"[^a]a {1,8}a {1,8}a[^a]")
"""What :data:`_SPACED` needs at least, as kinds of characters."""

_ASCII = bytes(range(128))
_FOR_OTHER_LETTERS = (_characters, _homoglyphs, _spacing, _stretching)

_TOKENS_ALONE = bytes(c if chr(c).isalnum() and c < 128 or chr(c) in "@$!|" else 32 for c in range(256))
"""All that is no part of a :data:`_TOKEN` becomes a space."""

_LETTER, _SIGN, _BAR, _SPECIAL, _BEHIND, _GAP = 1, 2, 4, 8, 7, 128
_BETWEEN = b"\n" * 5
"""Stands between texts that are looked at together: no two characters of two texts are near."""

_LOOK = bytes(
    {
        "a": _SIGN | _BAR | _LETTER << 3,  # what begins leetspeak when it stands behind it, and itself
        "0": _LETTER | _SIGN << 3,
        "!": _LETTER | _SIGN,
        "|": _LETTER | _BAR << 3 | _GAP,
        "o": _SPECIAL << 3,
        " ": _GAP,
        ".": 0,
    }[chr(kind)]
    | (_SPECIAL << 3 if character == ord("&") else 0)
    for character, kind in enumerate(_KINDS[:128])
).ljust(256)
"""Of each character three bits of what may not follow it, three of what it is, one for what never stays or begins an
entity, and one for a gap."""

_NO_LETTERS = bytes(not chr(c).isalpha() for c in range(128)).ljust(256, b"\1")
