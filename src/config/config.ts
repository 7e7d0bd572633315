/**
 * Checks the configuration once: turns environment variables and flags into a frozen `Config`, or into one error with
 * all problems. Pure: the host name and the service account are arguments. Opens no files.
 */
import {AdaptorError} from '../core/errors.ts';
import {parseJsonOrNothing, textAt} from '../core/json.ts';
import type {Secret} from '../core/log.ts';
import {checkTlsOptions} from '../relay/tls-options.ts';
import type {ValueType} from './setting-types.ts';
import {suggestion} from '../core/suggestion.ts';
import {
	foreignVariables,
	inertSettings,
	ownPrefixes,
	settings,
	type InertSetting,
	type Setting,
	type SettingsTable,
} from './settings.ts';

type ValueOf<S> = S extends {readonly type: ValueType<infer T>}
	? S extends {readonly default: string} | {readonly defaultIs: string}
		? T
		: T | undefined
	: never;
/** One value per setting, typed by the table; `undefined` only if the setting has no default. */
export type ValuesOf<Table extends SettingsTable> = {readonly [Name in keyof Table]: ValueOf<Table[Name]>};
type Values = ValuesOf<typeof settings>;
/** Values before all problems are known. */
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

/** A valid setting that the operator should know about. */
export interface ConfigWarning {
	/** The variable, or the flag with its dash. */
	readonly name: string;
	readonly reason: string;
}

/** settings.ts describes each setting; units are in the names. Deeply frozen. */
export interface Config extends Omit<Values, Normalized> {
	/** Every pod VM is confidential. From DISABLECVM and LIBVIRT_LAUNCH_SECURITY. */
	readonly confidential: boolean;
	/** Maximum number of concurrent pod VMs on this node. Undefined if not set; 'unlimited' for a negative number. */
	readonly limitPerNode: number | 'unlimited' | undefined;
	/** Absent: the daemon creates its own CA and a certificate for each VM. */
	readonly customCa: CustomCa | undefined;
	/** Logged once at start. Contains no values, but the warnings of `libvirtUri`. */
	readonly warnings: readonly ConfigWarning[];
}

/** Facts from the machine and the cluster. */
export interface Host {
	readonly hostname: string;
	/** Content of /var/run/secrets/kubernetes.io/serviceaccount/token, in a pod that has one. */
	readonly serviceAccountToken?: Secret<string>;
}

export interface ConfigProblem {
	/** The variable, or the flag with its dash. */
	readonly name: string;
	/** What is wrong, what is expected, and an example. */
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
 * The configuration of the daemon. Flags take precedence over variables.
 * @param flags values by flag name without dash
 * @throws ConfigError with every problem
 */
export function loadConfig(env: Texts, host: Host, flags: Texts = {}): Config {
	const isGiven = (setting: Setting): boolean => given(setting, env, flags) !== undefined;
	const {values, problems} = readTable(settings, env, host, flags);
	const {caCertFile, certFile, certKeyFile, ...parsed} = values;
	const {limitPerNode} = parsed;
	// A default limit yields to a configured size.
	const minMemoryMib = isGiven(settings.minMemoryMib)
		? parsed.minMemoryMib
		: Math.min(parsed.minMemoryMib ?? Infinity, parsed.memoryMib ?? Infinity);
	// Either setting alone turns on confidential VMs. If one turns them on and the other turns them off, this is an
	// error.
	const disableCvm = isGiven(settings.disableCvm) || parsed.launchSecurity === undefined ? parsed.disableCvm : false;
	// A default limit is at least the configured size.
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
 * The settings of any other command: one value per setting, each checked independently.
 * @param flags values by flag name without dash
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

	// Without problems, only optional settings are undefined.
	return Object.freeze(values as ValuesOf<Table>);
}

/**
 * An empty value counts as not set (manifests pass empty values). White space around a value is removed (secrets end
 * with a newline).
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
			problems.push({name, text: `contradicts its alias ${String(setting.alias)}; set one of them`});
		}

		const {value, problem} = read(setting, text);
		values[key] = value;
		if (problem !== undefined) {
			problems.push({name, text: `${problem}; for example ${name}=${exampleOf(setting)}`});
		}
	}

	// Each value has the type of its setting by construction. A value with a problem, or of an optional setting, is
	// undefined.
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

/** The message of the error that `check` throws, without a full stop; `undefined` if `check` does not throw. */
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

/** The example of a setting, or its default. */
export function exampleOf(setting: Setting): string {
	return setting.example ?? setting.default ?? '';
}

interface Given {
	readonly name: string;
	readonly text: string;
}

/** The value is trimmed, unless the type is verbatim. A blank value counts as not set. */
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

/** Settings that are valid alone, but not together. */
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

function warningsAbout(
	env: Texts,
	flags: Texts,
	{libvirtUri, externalNetworkViaPodVm}: Pick<Parsed, 'libvirtUri' | 'externalNetworkViaPodVm'>,
): ConfigWarning[] {
	const oneInterface = 'has no effect: the VM has one network interface, and its forwarder stays in the tunnel';
	return [
		...(libvirtUri?.warnings ?? []).map(reason => Object.freeze({name: 'LIBVIRT_URI', reason})),
		...inertWarnings(inertSettings, env, flags),
		...(externalNetworkViaPodVm === true
			? [Object.freeze({name: settings.externalNetworkViaPodVm.env, reason: oneInterface})]
			: []),
		...unknownVariables(env),
	];
}

/** One warning for each setting that is given and has no effect. */
export function inertWarnings(table: readonly InertSetting[], env: Texts, flags: Texts = {}): ConfigWarning[] {
	return table.flatMap(setting => {
		const asked = given(setting, env, flags);
		return asked === undefined || setting.silentFor?.includes(asked.text.toLowerCase()) === true
			? []
			: [Object.freeze({name: asked.name, reason: `has no effect: ${setting.reason}`})];
	});
}

/** Variables that a kubelet sets for each service of a namespace. Source: Kubernetes, "Service". */
const serviceVariable = /_SERVICE_HOST$|_SERVICE_PORT(?:_\w+)?$|_PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?$/v;
const serviceAddress = /^(?:tcp|udp|sctp):\/\//v;

/** One warning for each variable that begins like one of ours and is none. */
export function unknownVariables(env: Texts): ConfigWarning[] {
	const known = [...Object.values<Setting>(settings), ...inertSettings]
		.flatMap(({env: name, alias}: Pick<Setting, 'env' | 'alias'>) => [name, alias])
		.filter(name => name !== undefined);
	return Object.entries(env)
		.filter(
			([name, value = '']) =>
				ownPrefixes.some(prefix => name.startsWith(prefix)) &&
				value.trim() !== '' &&
				!known.includes(name) &&
				!foreignVariables.has(name) &&
				!serviceVariable.test(name) &&
				!serviceAddress.test(value),
		)
		.map(([name]) => Object.freeze({name, reason: `has no effect: there is no such setting${meant(name, known)}`}))
		.toSorted((a, b) => a.name.localeCompare(b.name));
}

/** Compared without the prefix, which would make any two names similar. */
function meant(name: string, known: readonly string[]): string {
	const longer = known.find(each => each.startsWith(`${name}_`));
	const prefix = ownPrefixes.find(each => name.startsWith(each)) ?? '';
	const same = known.filter(each => each.startsWith(prefix)).map(each => each.slice(prefix.length));
	return longer === undefined ? suggestion(name.slice(prefix.length), same, prefix) : ` (did you mean ${longer}?)`;
}

/** Quoted and truncated. */
function shown(text: string): string {
	return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

/**
 * The UID of the service account from the claims of its token. The token is not verified: the UID only has to differ
 * between clusters, and the API server generates it at random. The CA bundle is unsuitable because it is rotated, and
 * the address of the API server because it is the same in most clusters.
 * Source: Kubernetes, "Managing Service Accounts" (bound tokens; legacy tokens have a flat claim).
 */
export function serviceAccountUid(token: Secret<string>): string | undefined {
	// Text that is not JSON is not a token of Kubernetes.
	const claims = parseJsonOrNothing(Buffer.from(token.reveal().split('.')[1] ?? '', 'base64url'));
	return (
		textAt(claims, 'kubernetes.io', 'serviceaccount', 'uid') ??
		textAt(claims, 'kubernetes.io/serviceaccount/service-account.uid')
	);
}
