/** `cloud-api-adaptor pods`, `pods inspect`, `pods console` and `pods rm`: the pod VMs of this node. */
import {loadSettings} from '../config/config.ts';
import {byteSize} from '../core/byte-size.ts';
import {AdaptorError} from '../core/errors.ts';
import {pause} from '../core/lifetime.ts';
import {StatusClient} from '../status/client.ts';
import type {InspectPodResponse} from '../status/contract.ts';
import {statusSocketBeside} from '../status/socket-path.ts';
import {exitCode, type CommandContext} from './command.ts';
import {statusSettings} from './pods-settings.ts';
import {podsKey, podsTable} from './pods-table.ts';
import {printable} from './text.ts';

/** A person sees a change as soon as this; a list takes a call to libvirt for each VM. */
const watchEveryMs = 1000;

export async function pods(context: CommandContext, signal: AbortSignal): Promise<number> {
	const {flags, out} = context;
	await using status = await connected(context, signal);
	let shown: string | undefined;
	for (;;) {
		const answer = await status.call('ListPods', {}, signal);
		const key = podsKey(answer);
		if (flags['json'] === 'true') {
			if (key !== shown) {
				out.write(`${JSON.stringify(answer, undefined, flags['watch'] === 'true' ? undefined : '\t')}\n`);
			}
		} else if (out.columns !== undefined && flags['watch'] === 'true') {
			// ECMA-48: cursor to the start, erase the rest of the display.
			out.write(`\u001B[H\u001B[J${podsTable(answer, Date.now())}`);
		} else if (key !== shown) {
			out.write(`${shown === undefined ? '' : '\n'}${podsTable(answer, Date.now())}`);
		}

		if (flags['watch'] !== 'true') {
			return exitCode.ok;
		}

		shown = key;
		await pause(watchEveryMs, signal);
	}
}

export async function inspectPod(context: CommandContext, signal: AbortSignal): Promise<number> {
	const {
		operands: [pod = ''],
		out,
	} = context;
	await using status = await connected(context, signal);
	out.write(inspection(await status.call('InspectPod', {pod}, signal)));
	return exitCode.ok;
}

export async function podConsole(context: CommandContext, signal: AbortSignal): Promise<number> {
	const {
		operands: [pod = ''],
		flags,
		out,
	} = context;
	await using status = await connected(context, signal);
	let position = 0;
	for (;;) {
		const answer = await status.call('ReadConsole', {pod, position}, signal);
		// A guest must not control the terminal of an administrator.
		out.write(printable(answer.output.toString()));
		position = answer.position;
		if (flags['f'] !== 'true') {
			return exitCode.ok;
		}
	}
}

export async function removePod(context: CommandContext, signal: AbortSignal): Promise<number> {
	const {
		operands: [pod = ''],
		flags,
		out,
		confirm,
	} = context;
	await using status = await connected(context, signal);
	const {pod: found} = await status.call('InspectPod', {pod}, signal);
	const what = `the sandbox ${found.sandbox_id.slice(0, 12)} of ${found.namespace}/${found.name}, its VM ${found.instance_name} and its disks`;
	if (flags['yes'] !== 'true') {
		if (confirm === undefined) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: `This removes ${what}`,
				remedy: 'Confirm it with -yes, or on a terminal ("oc exec -it").',
			});
		}

		if (!(await confirm(`Remove ${what}?`, signal))) {
			out.write('Nothing was removed\n');
			return exitCode.failure;
		}
	}

	await status.call('RemovePod', {pod: found.sandbox_id}, signal);
	out.write(`Removed ${what}\n`);
	return exitCode.ok;
}

async function connected({env, flags, host}: CommandContext, signal: AbortSignal): Promise<StatusClient> {
	const {socketPath} = loadSettings(statusSettings, env, host, flags);
	return StatusClient.connect(statusSocketBeside(socketPath), signal);
}

function inspection({
	pod,
	record,
	domain_xml: domainXml,
	volumes,
	network,
	commands,
	log,
	errors,
}: InspectPodResponse): string {
	const section = (title: string, text: string): string => (text === '' ? '' : `\n== ${title}\n${text.trimEnd()}\n`);
	return printable(
		[
			`== Pod\n${Object.entries(pod)
				.filter(([, value]) => value !== '' && value !== 0)
				.map(
					([name, value]) =>
						`${name}: ${/_(?:since|at)$/v.test(name) ? new Date(Number(value)).toISOString() : String(value)}`,
				)
				.join('\n')}\n`,
			section('Could not be read', errors.join('\n')),
			section('Record in PODS_DIR', record),
			section('Network as reserved', network),
			...commands.map(({command, output}) => section(`In the network namespace: ${command}`, output)),
			section('Domain', domainXml),
			section(
				'Volumes',
				volumes
					.map(
						({name, capacity, allocation}) =>
							`${name}: ${byteSize(capacity)}, ${byteSize(allocation)} used`,
					)
					.join('\n'),
			),
			section('Log', log.join('\n')),
		].join(''),
	);
}
