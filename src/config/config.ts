/**
 * What the process was told, checked once: environment and flags in, a frozen `Config` out, or one error with every
 * problem in it. Pure: what only the running machine knows (host name, service account) is an argument. Opens no file
 * that a setting names.
 */
import {AdaptorError} from '../core/errors.ts';
import {parseJsonOrNothing, textAt} from '../core/json.ts';
import type {Secret} from '../core/log.ts';
import {checkTlsOptions} from '../relay/tls-options.ts';
import type {ValueType} from './setting-types.ts';
import {inertSettings, settings, type Setting, type SettingsTable} from './settings.ts';

type ValueOf<S> = S extends {readonly type: ValueType<infer T>}
	? S extends {readonly default: string} | {readonly defaultIs: string}
		? T
		: T | undefined
	: never;
/** One value a setting, typed by the table; `undefined` only where the table has no default. */
export type ValuesOf<Table extends SettingsTable> = {readonly [Name in keyof Table]: ValueOf<Table[Name]>};
type Values = ValuesOf<typeof settings>;
/** Before it is known that nothing is wrong. */
type ParsedOf<Table extends SettingsTable> = {readonly [Name in keyof Table]: ValueOf<Table[Name]> | undefined};
type Parsed = ParsedOf<typeof settings>;
type CustomCaName = 'caCertFile' | 'certFile' | 'certKeyFile';
/** Settings that have another form in `Config`. */
type Normalized = CustomCaName | 'disableCvm' | 'launchSecurity' | 'limitPerNode';

/** The administrator's own CA and client certificate: paths of PEM files. */
export interface CustomCa {
	readonly caFile: string;
	readonly certFile: string;
	readonly keyFile: string;
}

/** Something that was set and is legal, but the operator should know about it. */
export interface ConfigWarning {
	/** The variable, or the flag with its dash. */
	readonly name: string;
	readonly reason: string;
}

/** Described setting by setting in settings.ts; units are in the names. Deeply frozen. */
export interface Config extends Omit<Values, Normalized> {
	/** Every pod VM is confidential. From DISABLECVM and LIBVIRT_LAUNCH_SECURITY. */
	readonly confidential: boolean;
	/** Pod VMs at a time on this node. Undefined when it is not set; 'unlimited' when a negative number is. */
	readonly limitPerNode: number | 'unlimited' | undefined;
	/** Absent: a CA of our own and a certificate for each VM. */
	readonly customCa: CustomCa | undefined;
	/** To be logged once at start. Holds no values. Those of `libvirtUri` are among them. */
	readonly warnings: readonly ConfigWarning[];
}

/** What the machine and the cluster say about this process. */
export interface Host {
	readonly hostname: string;
	/** Content of /var/run/secrets/kubernetes.io/serviceaccount/token, in a pod that has one. */
	readonly serviceAccountToken?: Secret<string>;
}

export interface ConfigProblem {
	/** The variable, or the flag with its dash. */
	readonly name: string;
	/** What is wrong with it, what is expected, an example. */
	readonly text: string;
}

export class ConfigError extends AdaptorError {
	override readonly name = 'ConfigError';
	readonly problems: readonly ConfigProblem[];

	constructor(problems: readonly ConfigProblem[]) {
		super({
			code: 'invalid-argument',
			what: `The configuration has ${problems.length === 1 ? 'a problem' : `${problems.length} problems`}`,
			remedy: [
				'"cloud-api-adaptor help" explains every setting. To correct:',
				...problems.map(({name, text}) => `  ${name} ${text}`),
			].join('\n'),
		});
		this.problems = problems;
	}
}

/** Source: cloud-api-adaptor, pkg/probe. */
const defaultProbePort = 8000;

type SizeName = 'vcpus' | 'minVcpus' | 'maxVcpus' | 'minMemoryMib' | 'memoryMib' | 'maxMemoryMib';
type Texts = Readonly<Record<string, string | undefined>>;

/**
 * The daemon's configuration. Flags win over variables.
 * @param flags by the flag's name without dash
 * @throws ConfigError with every problem
 */
export function loadConfig(env: Texts, host: Host, flags: Texts = {}): Config {
	const isGiven = (setting: Setting): boolean => given(setting, env, flags) !== undefined;
	const {values, problems} = readTable(settings, env, host, flags);
	const {caCertFile, certFile, certKeyFile, ...parsed} = values;
	const {limitPerNode} = parsed;
	// A limit that nobody set gives way to the size that somebody did.
	const minMemoryMib = isGiven(settings.minMemoryMib)
		? parsed.minMemoryMib
		: Math.min(parsed.minMemoryMib ?? Infinity, parsed.memoryMib ?? Infinity);
	// Either name asks for confidential VMs; only to turn them off as well is a contradiction.
	const disableCvm = isGiven(settings.disableCvm) || parsed.launchSecurity === undefined ? parsed.disableCvm : false;
	// A configured size is never more than its limit by default.
	const maxVcpus = isGiven(settings.maxVcpus) ? parsed.maxVcpus : Math.max(parsed.maxVcpus ?? 0, parsed.vcpus ?? 0);
	const maxMemoryMib = isGiven(settings.maxMemoryMib)
		? parsed.maxMemoryMib
		: Math.max(parsed.maxMemoryMib ?? 0, parsed.memoryMib ?? 0);
	const sized = {...parsed, minMemoryMib, maxVcpus, maxMemoryMib, disableCvm};
	problems.push(...contradictions(sized, isGiven));
	if (problems.length > 0) {
		throw new ConfigError(problems);
	}

	const {disableCvm: _, launchSecurity: _launchSecurity, limitPerNode: _limit, ...others} = sized;
	const probePort = sized.probePort ?? (host.serviceAccountToken === undefined ? undefined : defaultProbePort);
	const customCa =
		caCertFile !== undefined && certFile !== undefined && certKeyFile !== undefined
			? Object.freeze({caFile: caCertFile, certFile, keyFile: certKeyFile})
			: undefined;
	return Object.freeze({
		...(others as Omit<Values, Normalized>),
		confidential: !disableCvm,
		limitPerNode: limitPerNode === undefined || limitPerNode >= 0 ? limitPerNode : 'unlimited',
		probePort,
		customCa,
		warnings: Object.freeze(warningsAbout(env, flags, parsed)),
	});
}

/**
 * What any other command is told: one value a setting of its table, each checked by itself.
 * @param flags by the flag's name without dash
 * @throws ConfigError with every problem
 */
export function loadSettings<Table extends SettingsTable>(
	table: Table,
	env: Texts,
	host: Host,
	flags: Texts = {},
): ValuesOf<Table> {
	const {values, problems} = readTable(table, env, host, flags);
	if (problems.length > 0) {
		throw new ConfigError(problems);
	}

	// Without a problem, undefined is only what the table lets be absent.
	return Object.freeze(values as ValuesOf<Table>);
}

/**
 * An empty value counts as not set (manifests pass empty ones), and white space around a value is dropped (secrets end
 * in a newline).
 */
function readTable<Table extends SettingsTable>(
	table: Table,
	env: Texts,
	host: Host,
	flags: Texts,
): {readonly values: ParsedOf<Table>; readonly problems: ConfigProblem[]} {
	const hostDefaults: Texts = {
		NODE_NAME: host.hostname,
		CLUSTER_ID: host.serviceAccountToken === undefined ? undefined : serviceAccountUid(host.serviceAccountToken),
	};
	const problems: ConfigProblem[] = [];
	const values: Record<string, unknown> = {};
	for (const [key, setting] of Object.entries<Setting>(table)) {
		const {name, text} = given(setting, env, flags) ?? {
			name: setting.env,
			text: setting.default ?? hostDefaults[setting.env]?.trim(),
		};
		const ofAlias = setting.alias === undefined ? undefined : env[setting.alias]?.trim();
		if (ofAlias && name === setting.env && ofAlias !== text) {
			problems.push({name, text: `contradicts ${String(setting.alias)}, another name of it; set one of them`});
		}

		const {value, problem} = read(setting, text);
		values[key] = value;
		if (problem !== undefined) {
			problems.push({name, text: `${problem}; for example ${name}=${exampleOf(setting)}`});
		}
	}

	// Each value is of its setting's type by construction; undefined is one with a problem, or one that the table lets
	// be absent.
	return {values: values as ParsedOf<Table>, problems};
}

function read(setting: Setting, text: string | undefined): {value?: unknown; problem?: string} {
	if (text === undefined || text === '') {
		return setting.defaultIs === undefined
			? {}
			: {problem: `is not set and has no default here; expected ${setting.type.expected}`};
	}

	let value: unknown;
	const complaint = complaintOf(() => {
		value = setting.type.parse(text);
	});
	if (complaint !== undefined) {
		return {problem: `is refused: ${complaint}`};
	}

	return value === undefined ? {problem: `is ${shown(text)}; expected ${setting.type.expected}`} : {value};
}

/** What a check of someone else's says, without a full stop; `undefined` when it has nothing to say. */
function complaintOf(check: () => void): string | undefined {
	try {
		check();
		return undefined;
	} catch (error) {
		if (error instanceof AdaptorError) {
			return error.message.replace(/\.$/v, '');
		}

		throw error;
	}
}

/** The example of a setting, else its default: what one could write. */
export function exampleOf(setting: Setting): string {
	return setting.example ?? setting.default ?? '';
}

interface Given {
	readonly name: string;
	readonly text: string;
}

/** Trimmed, unless the type is verbatim; what is blank is not given at all. */
function given(
	{env: variable, alias, flag, type}: Pick<Setting, 'env' | 'alias' | 'flag'> & {readonly type?: ValueType<unknown>},
	env: Texts,
	flags: Texts,
): Given | undefined {
	const textOf = (raw: string | undefined): string =>
		type?.isVerbatim === true && raw?.trim() ? raw : (raw?.trim() ?? '');
	const ofFlag = flag === undefined ? '' : textOf(flags[flag]);
	if (ofFlag !== '') {
		return {name: `-${String(flag)}`, text: ofFlag};
	}

	return [variable, ...(alias === undefined ? [] : [alias])]
		.map(name => ({name, text: textOf(env[name])}))
		.find(({text}) => text !== '');
}

/** Settings that are right one by one and wrong together. */
function contradictions(values: Omit<Parsed, CustomCaName>, isGiven: (setting: Setting) => boolean): ConfigProblem[] {
	const problems: ConfigProblem[] = [];
	const customCa = [settings.caCertFile, settings.certFile, settings.certKeyFile];
	if (customCa.some(isGiven)) {
		for (const setting of customCa.filter(each => !isGiven(each))) {
			problems.push({
				name: setting.env,
				text: `is not set; expected all of CACERT_FILE, CERT_FILE and CERT_KEY or none; for example ${setting.env}=${setting.example}`,
			});
		}
	}

	const ordered = (low: SizeName, high: SizeName): void => {
		const [least, most] = [values[low], values[high]];
		if (least !== undefined && most !== undefined && least > most) {
			problems.push({
				name: settings[low].env,
				text: `is ${least}, more than ${settings[high].env}, which is ${most}`,
			});
		}
	};
	ordered('minVcpus', 'vcpus');
	ordered('vcpus', 'maxVcpus');
	ordered('minMemoryMib', 'memoryMib');
	ordered('memoryMib', 'maxMemoryMib');

	if (values.launchSecurity !== undefined && values.disableCvm === true) {
		problems.push({
			name: 'LIBVIRT_LAUNCH_SECURITY',
			text: `is "${values.launchSecurity}", but DISABLECVM is true and turns it off; expected DISABLECVM=false with it, or no DISABLECVM`,
		});
	}

	const {tlsMinVersion: minVersion, tlsCipherSuites: cipherSuites} = values;
	const complaint = complaintOf(() =>
		checkTlsOptions({...(minVersion && {minVersion}), ...(cipherSuites && {cipherSuites})}),
	);
	if (complaint !== undefined) {
		problems.push({name: 'TLS_CIPHER_SUITES', text: `is refused: ${complaint}`});
	}

	return problems;
}

function warningsAbout(env: Texts, flags: Texts, {libvirtUri}: Pick<Parsed, 'libvirtUri'>): ConfigWarning[] {
	const warnings: ConfigWarning[] = (libvirtUri?.warnings ?? []).map(reason => ({name: 'LIBVIRT_URI', reason}));
	for (const setting of inertSettings) {
		const asked = given(setting, env, flags);
		if (asked !== undefined && setting.silentFor?.includes(asked.text.toLowerCase()) !== true) {
			warnings.push({name: asked.name, reason: `has no effect: ${setting.reason}`});
		}
	}

	return warnings.map(warning => Object.freeze(warning));
}

/** Quoted and short. */
function shown(text: string): string {
	return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

/**
 * The UID of the service account in its token's claims, unverified: it only has to differ between clusters, and the API
 * server made it at random. Better than the CA bundle, which is rotated, and than the API server's address, which is
 * the same in most clusters. Source: Kubernetes, "Managing Service Accounts" (bound tokens; legacy tokens have a flat
 * claim).
 */
export function serviceAccountUid(token: Secret<string>): string | undefined {
	// What is not JSON is no token of Kubernetes'.
	const claims = parseJsonOrNothing(Buffer.from(token.reveal().split('.')[1] ?? '', 'base64url'));
	return (
		textAt(claims, 'kubernetes.io', 'serviceaccount', 'uid') ??
		textAt(claims, 'kubernetes.io/serviceaccount/service-account.uid')
	);
}
