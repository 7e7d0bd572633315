/**
 * `cloud-api-adaptor check`: shows on one screen whether this node can run peer pods. Changes nothing.
 * Lines appear as results arrive, always in the same order.
 */
import {silentLogger} from '../core/log.ts';
import {noObserver} from '../core/observer.ts';
import {present} from '../core/present.ts';
import {createNetworkProbe} from '../network/probe.ts';
import type {Finding, Status} from '../check/finding.ts';
import {runChecks, type CheckResult} from '../check/run-checks.ts';
import {composeChecks} from '../checks.ts';
import {loadConfig} from '../config/config.ts';
import {identifyPodsDir} from '../journal/pods-dir.ts';
import {openLibvirtProvider} from '../podvm/provider.ts';
import {exitCode, type CommandContext, type Screen} from './command.ts';
import {wrapped} from './text.ts';

/** @returns 1 if a check failed, otherwise 0, also with warnings */
export async function check(
	{env, flags, host, processContext: {home, user, uid, sshAgentSocket}, out}: CommandContext,
	signal: AbortSignal,
): Promise<number> {
	const config = loadConfig(env, host, flags);
	// The provider does not log: the findings contain the same information.
	await using provider = openLibvirtProvider(config, {
		home,
		user,
		uid,
		sshAgentSocket,
		observer: noObserver,
		log: silentLogger,
	});
	await using network = createNetworkProbe(config);
	// If PODS_DIR cannot be identified, the owner of VMs is unknown, and the check is skipped.
	const podsDir = await identifyPodsDir(config.podsDir, config.nodeName).catch(() => undefined);
	using checks = composeChecks({
		config,
		host: provider.openProbe(),
		network,
		...present({podsDir}),
	});
	const titles = {host: `KVM host ${config.libvirtUri.text}`, node: `Worker node ${config.nodeName}`};
	const results: CheckResult[] = [];
	const asJson = flags['json'] === 'true';
	for await (const result of runChecks(checks.list, {}, signal)) {
		if (!asJson) {
			out.write(
				`${results.at(-1)?.subject === result.subject ? '' : `${results.length === 0 ? '' : '\n'}${titles[result.subject]}\n`}${line(result, out)}`,
			);
		}

		results.push(result);
	}

	out.write(
		asJson
			? `${JSON.stringify({node: config.nodeName, uri: config.libvirtUri.text, status: worst(results), checks: results.map(jsonOf)}, undefined, '\t')}\n`
			: `\n${summary(results)}\n`,
	);
	return worst(results) === 'failure' ? exitCode.failure : exitCode.ok;
}

function worst(findings: readonly Finding[]): 'ok' | 'warning' | 'failure' {
	return (['failure', 'warning'] as const).find(status => findings.some(each => each.status === status)) ?? 'ok';
}

/** Every field is always present. */
function jsonOf({
	name,
	subject,
	status,
	text,
	remedy = null,
	durationMs,
}: Omit<CheckResult, 'remedy'> & {readonly remedy?: string | null}): Readonly<Record<string, unknown>> {
	return {name, subject, status, text, remedy, durationMs};
}

const statusWidth = 'warning'.length + 2;
const nameWidth = 'network-protection'.length + 2;
const indent = 2 + statusWidth + nameWidth;

function line({name, status, text, remedy}: CheckResult, {columns = Infinity}: Screen): string {
	const width = Math.max(40, columns - indent - 1);
	const [first = '', ...rest] = [
		...wrapped(text, width),
		...(remedy === undefined ? [] : wrapped(`→ ${remedy}`, width)),
	];
	return [
		`  ${status.padEnd(statusWidth)}${name.padEnd(nameWidth)}${first}`,
		...rest.map(more => ' '.repeat(indent) + more),
		'',
	].join('\n');
}

function summary(results: readonly CheckResult[]): string {
	const count = (status: Status): number => results.filter(each => each.status === status).length;
	const counted = (number: number, one: string): string => `${number} ${one}${number === 1 ? '' : 's'}`;
	const verdict = count('failure') > 0 ? 'This node cannot run peer pods.' : 'This node can run peer pods.';
	return `${count('ok')} ok, ${counted(count('warning'), 'warning')}, ${counted(count('failure'), 'failure')}, ${count('skipped')} skipped. ${verdict}`;
}
