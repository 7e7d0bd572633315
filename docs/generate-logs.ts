/**
 * Writes logs.md from the source: `npm run docs`. Events are the calls of a logger and the lines of the log observer;
 * the compiler knows the fields of each. A test checks that this was done, and that each field has a meaning.
 */
import {readFileSync, writeFileSync} from 'node:fs';
import {fileURLToPath} from 'node:url';
import ts from 'typescript';

export interface LogEvent {
	/** `<name>` stands for a part that differs. */
	readonly message: string;
	/** In the order of `levels`. */
	readonly levels: readonly string[];
	/** Sorted. */
	readonly fields: readonly string[];
	/** Paths from the project's directory, sorted. */
	readonly files: readonly string[];
}

export interface LogField {
	readonly name: string;
	readonly type: string;
	/** Empty if there is none. */
	readonly meaning: string;
}

const root = fileURLToPath(new URL('..', import.meta.url));
const levels = ['fatal', 'error', 'warn', 'info', 'debug', 'trace'];
/** For fields without a comment in `LogFields`. */
const meanings: Readonly<Record<string, string>> = {
	address: 'IP address of the VM',
	attempt: 'number of the attempt, from 1; a retry is logged at attempts 1, 2, 4, 8 …, and the others at `debug`',
	bytes: 'bytes that were relayed',
	certificate: 'fingerprint or subject of a certificate',
	check: 'name of the check, as in `check`',
	code: 'code of the error ([troubleshooting](troubleshooting.md#error-codes)), or the status of an agent call',
	connection: 'number of the libvirt connection since the start of the process',
	count: 'how many: pods, calls, VMs; the message says which',
	domainType: '`kvm`, or `qemu` where the host has no KVM',
	durationMs: 'how long it took',
	err: 'the error: `type`, `message` (what, where, what to do), `code`, `cause` with the same parts, `stack` for faults of the program',
	event: 'what happened, in one word',
	host: 'name of the KVM host',
	image: 'volume that the pod selected, or the default one',
	instanceName: 'name of the domain on the KVM host, `podvm-<pod>-<first 8 of the sandbox id>`',
	isolatedPort: 'whether the bridge port of the VM is isolated',
	libvirtVersion: 'version of libvirt on the KVM host',
	mac: 'MAC address of the VM',
	memoryMib: 'memory of the VM',
	memoryFrom: 'where `memoryMib` comes from: an annotation or a setting',
	method: 'method of the API that was called',
	netns: 'path of the network namespace of the pod',
	network: 'libvirt network (`LIBVIRT_NET`)',
	node: 'name of the node (`NODE_NAME`)',
	path: 'path of a file, socket or directory',
	pid: 'process id',
	pod: '`namespace/name` of the pod',
	pool: 'storage pool (`LIBVIRT_POOL`)',
	port: 'TCP or UDP port',
	probePort: 'port of the probes (`PROBE_PORT`)',
	protocol: '`ttrpc` or `grpc`',
	reason: 'why, as a phrase',
	remedy: 'what the operator can do, as a sentence',
	retryInMs: 'pause before the next attempt',
	runtimeClass: 'runtime class that the webhook handles',
	sandboxId: 'id of the sandbox, as CRI-O and containerd show it',
	signal: 'signal that the process received',
	stage: 'stage of a start',
	swiotlbMib: 'part of `memoryMib` for the I/O of a confidential VM',
	timings: 'milliseconds of each stage of a start',
	transport: 'way to libvirtd: a unix socket, or ssh with the program or socket on the host',
	uri: 'libvirt URI, without a password',
	vcpus: 'virtual CPUs of the VM',
	vcpusFrom: 'where `vcpus` comes from: an annotation or a setting',
	version: 'version of this program',
	vmId: 'UUID of the domain',
	vni: 'VXLAN network identifier of the tunnel',
	volume: 'volume in the pool',
};

let found: {readonly events: readonly LogEvent[]; readonly fields: readonly LogField[]} | undefined;

/** Type-checks the source, once. */
export function readLogs(): NonNullable<typeof found> {
	found ??= read();
	return found;
}

function read(): NonNullable<typeof found> {
	const {config} = ts.readConfigFile(`${root}tsconfig.json`, path => readFileSync(path, 'utf8')) as {config: object};
	const {options} = ts.parseJsonConfigFileContent(config, ts.sys, root);
	const program = ts.createProgram([`${root}src/main.ts`], {...options, noEmit: true});
	const checker = program.getTypeChecker();
	const events = new Map<string, {levels: Set<string>; fields: Set<string>; files: Set<string>}>();
	for (const source of program.getSourceFiles().filter(({fileName}) => isRelevant(fileName))) {
		const file = source.fileName.slice(root.length);
		const visit = (node: ts.Node): void => {
			for (const {level, message, fields} of eventsAt(node, file, checker)) {
				for (const text of messagesOf(message, checker)) {
					const event = events.get(text) ?? {levels: new Set(), fields: new Set(), files: new Set()};
					events.set(text, event);
					event.files.add(file);
					for (const each of level) {
						event.levels.add(each);
					}

					for (const field of fieldsOf(fields, checker)) {
						event.fields.add(field);
					}
				}
			}

			ts.forEachChild(node, visit);
		};
		visit(source);
	}

	return {
		events: [...events]
			.map(([message, event]) => ({
				message,
				levels: levels.filter(level => event.levels.has(level)),
				fields: [...event.fields].toSorted(),
				files: [...event.files].toSorted(),
			}))
			.toSorted((a, b) => (a.message.toLowerCase() < b.message.toLowerCase() ? -1 : 1)),
		fields: fieldsOfLog(program.getSourceFile(`${root}src/core/log.ts`), checker),
	};
}

function isRelevant(path: string): boolean {
	return path.startsWith(`${root}src/`) && path !== `${root}src/core/log.ts`;
}

interface Found {
	readonly level: readonly string[];
	readonly message: ts.Expression;
	readonly fields: ts.Expression;
}

/** A call of a logger, or a line of the observer. */
function eventsAt(node: ts.Node, file: string, checker: ts.TypeChecker): Found[] {
	if (ts.isCallExpression(node) && node.arguments.length === 2) {
		const [fields, message] = node.arguments;
		const callee = node.expression;
		if (fields === undefined || message === undefined || !isWrite(callee, checker)) {
			return [];
		}

		const level = ts.isPropertyAccessExpression(callee)
			? [callee.name.text]
			: ts.isElementAccessExpression(callee)
				? literalsOf(checker.getTypeAtLocation(callee.argumentExpression))
				: [];
		// The line of the observer is written with a message that is not known here.
		return ts.isIdentifier(message) && file === 'src/observers/log-observer.ts' ? [] : [{level, message, fields}];
	}

	if (file === 'src/observers/log-observer.ts' && ts.isArrayLiteralExpression(node) && node.elements.length === 3) {
		const [level, message, fields] = node.elements;
		return level === undefined || message === undefined || fields === undefined
			? []
			: [{level: literalsOf(checker.getTypeAtLocation(level)), message, fields}];
	}

	return [];
}

function isWrite(callee: ts.Expression, checker: ts.TypeChecker): boolean {
	return (
		(ts.isPropertyAccessExpression(callee) || ts.isElementAccessExpression(callee)) &&
		checker.typeToString(checker.getTypeAtLocation(callee.expression)) === 'Logger'
	);
}

function literalsOf(type: ts.Type): string[] {
	return (type.isUnion() ? type.types : [type])
		.filter((each): each is ts.StringLiteralType => each.isStringLiteral())
		.map(({value}) => value);
}

/** Each text that the expression can have; what is only known at run time is `<name>`. */
function messagesOf(message: ts.Expression, checker: ts.TypeChecker): string[] {
	if (ts.isStringLiteralLike(message)) {
		return [message.text];
	}

	if (ts.isConditionalExpression(message)) {
		return [message.whenTrue, message.whenFalse].flatMap(each => messagesOf(each, checker));
	}

	if (ts.isTemplateExpression(message)) {
		return message.templateSpans.reduce(
			(texts, {expression, literal}) => {
				const literals = literalsOf(checker.getTypeAtLocation(expression));
				const parts = literals.length > 0 ? literals : [`<${expression.getText()}>`];
				return texts.flatMap(text => parts.map(part => `${text}${part}${literal.text}`));
			},
			[message.head.text],
		);
	}

	const literals = literalsOf(checker.getTypeAtLocation(message));
	const origins = literals.length > 0 ? [] : originsOf(message, checker);
	return literals.length > 0
		? literals
		: origins.length > 0
			? origins.flatMap(each => messagesOf(each, checker))
			: [`<${message.getText()}>`];
}

/** What a name can stand for: elements of destructured arrays, or arguments of the calls in its file. */
function originsOf(name: ts.Expression, checker: ts.TypeChecker): ts.Expression[] {
	const declaration = checker.getSymbolAtLocation(name)?.valueDeclaration;
	if (declaration === undefined) {
		return [];
	}

	if (ts.isBindingElement(declaration) && ts.isArrayBindingPattern(declaration.parent)) {
		const index = declaration.parent.elements.indexOf(declaration);
		const variable = declaration.parent.parent;
		return ts.isVariableDeclaration(variable) && variable.initializer !== undefined
			? elementsOf(variable.initializer, index)
			: [];
	}

	if (ts.isParameter(declaration)) {
		const called = declaration.parent.name;
		const index = declaration.parent.parameters.indexOf(declaration);
		const symbol = called === undefined ? undefined : checker.getSymbolAtLocation(called);
		return callsIn(name.getSourceFile())
			.filter(({expression}) => checker.getSymbolAtLocation(expression) === symbol)
			.flatMap(({arguments: given}) => given[index] ?? []);
	}

	return [];
}

function elementsOf(expression: ts.Expression, index: number): ts.Expression[] {
	return ts.isConditionalExpression(expression)
		? [expression.whenTrue, expression.whenFalse].flatMap(each => elementsOf(each, index))
		: ts.isArrayLiteralExpression(expression)
			? expression.elements.slice(index, index + 1)
			: [];
}

function callsIn(node: ts.Node): ts.CallExpression[] {
	const calls: ts.CallExpression[] = [];
	const visit = (each: ts.Node): void => {
		if (ts.isCallExpression(each)) {
			calls.push(each);
		}

		ts.forEachChild(each, visit);
	};
	visit(node);
	return calls;
}

function fieldsOf(fields: ts.Expression, checker: ts.TypeChecker): string[] {
	const type = checker.getTypeAtLocation(fields);
	return (type.isUnion() ? type.types : [type]).flatMap(each => each.getProperties().map(({name}) => name));
}

function fieldsOfLog(source: ts.SourceFile | undefined, checker: ts.TypeChecker): LogField[] {
	const declaration = source?.statements.find(
		(each): each is ts.InterfaceDeclaration => ts.isInterfaceDeclaration(each) && each.name.text === 'LogFields',
	);
	const members: readonly ts.TypeElement[] = declaration?.members ?? [];
	return members.filter(ts.isPropertySignature).map(member => {
		const name = member.name.getText();
		const symbol = checker.getSymbolAtLocation(member.name);
		const comment = ts.displayPartsToString(symbol?.getDocumentationComment(checker)).replace(/\.$/v, '');
		return {name, type: member.type?.getText() ?? '', meaning: comment || (meanings[name] ?? '')};
	});
}

/** The whole of docs/logs.md. */
export function logsMarkdown(): string {
	const {events, fields} = readLogs();
	return [
		'<!-- Written by docs/generate-logs.ts from the log calls in src/: edit those instead. -->',
		'# Log events',
		'',
		'Every event is one line of JSON on standard error (`LOG_FORMAT=pretty` for a reader). Every line has `level`, `time`',
		'and `msg`. Lines about a sandbox also have `sandboxId` and, as soon as they are known, `pod` and `instanceName`. What',
		'the important events mean, and what to do: [troubleshooting.md](troubleshooting.md#log-messages).',
		'',
		'Levels: `fatal`: the process ends. `error`: someone must act. `warn`: the daemon acted, or retries. `info`: the life of',
		'a sandbox. `debug`: each call. Several levels: the first occurrence, and repetitions.',
		'',
		'The life of a sandbox, as it should look:',
		'',
		'| `msg` | fields to look at |',
		'|---|---|',
		"| `sandbox created` | `vcpus`, `memoryMib`, and `vcpusFrom`, `memoryFrom`: where each value comes from; `initdata`: the digest of the pod's initdata; `vni`; `netns` |",
		'| `Choosing <image>` | the image |',
		'| `domain started` | `mac`, `domainType`; `memoryMib` of the VM, which includes `swiotlbMib`; `netFilter` and `isolatedPort`, and `reason` if one is missing |',
		'| `forwarder of the VM reached` | `address` |',
		'| `pod VM started` | `timings`: milliseconds of each stage of the start |',
		'| `pod VM deleted`, `sandbox removed` | `durationMs` |',
		'',
		'## Fields',
		'',
		'| field | type | meaning |',
		'| --- | --- | --- |',
		...fields.map(({name, type, meaning}) => `| \`${name}\` | ${cell(code(type))} | ${cell(meaning)} |`),
		'',
		'## Events',
		'',
		'Fields of the line itself; those of its sandbox come on top.',
		'',
		'| event | level | fields | source |',
		'| --- | --- | --- | --- |',
		...events.map(
			event =>
				`| ${cell(code(event.message))} | ${event.levels.join(', ')} | ${event.fields.map(code).join(', ')} | ${event.files.map(code).join(', ')} |`,
		),
		'',
	].join('\n');
}

function code(text: string): string {
	return `\`${text}\``;
}

function cell(text: string): string {
	return text.replaceAll('|', String.raw`\|`);
}

if (import.meta.main) {
	writeFileSync(new URL('logs.md', import.meta.url), logsMarkdown());
}
