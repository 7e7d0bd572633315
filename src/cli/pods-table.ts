/** The table of `cloud-api-adaptor pods`. Pure. */
import type {ListPodsResponse, Pod} from '../status/contract.ts';
import {columns} from './text.ts';

const longestError = 80;

/** @param now milliseconds since 1970 */
export function podsTable({node, pods, host_error: hostError}: ListPodsResponse, now: number): string {
	const note = hostError === '' ? '' : `The KVM host does not answer: ${firstLine(hostError)}\n`;
	return pods.length === 0
		? `The node ${node} has no pod VMs\n${note}`
		: `${columns(
				withoutEmpty([
					['POD', 'STATE', 'FOR', 'VM', 'SIZE', 'IMAGE', 'SE', 'ADDRESS', 'VNI', 'CALLS', 'UP', 'ERROR'],
					...pods.map(pod => row(pod, now)),
				]),
			)}\n${note}`;
}

/** Leaves out columns in which no row has anything. */
function withoutEmpty(rows: ReadonlyArray<readonly string[]>): ReadonlyArray<readonly string[]> {
	const isEmpty = (column: number): boolean => rows.slice(1).every(row => ['', '-'].includes(row[column] ?? ''));
	return rows.map(row => row.filter((_, column) => !isEmpty(column)));
}

/** Without the parts that change by themselves: equal if nothing has happened. */
export function podsKey({pods, host_error: hostError}: ListPodsResponse): string {
	return JSON.stringify([
		hostError,
		pods.map(({agent_calls: _calls, last_error_at: _at, stage_since: _since, ...rest}) => rest),
	]);
}

function row(pod: Pod, now: number): readonly string[] {
	const {namespace, name, sandbox_id: id, state, stage, is_removal_pending: isPending} = pod;
	return [
		name === '' ? id.slice(0, 12) : `${namespace}/${name}`,
		`${state}${stage === '' ? '' : ` (${stage})`}${isPending && state !== 'orphaned' ? ', removal pending' : ''}`,
		since(pod.stage_since === 0 ? pod.state_since : pod.stage_since, now),
		pod.instance_name === '' ? '-' : pod.instance_name,
		pod.vcpus === 0 ? '-' : `${pod.vcpus} CPU, ${pod.memory_mib} MiB`,
		pod.image === '' ? '-' : pod.image,
		pod.confidential ? 'yes' : 'no',
		pod.address === '' ? '-' : pod.address,
		pod.vni === 0 ? '-' : String(pod.vni),
		pod.agent_calls === 0 ? '-' : String(pod.agent_calls),
		since(pod.vm_created_at, now),
		firstLine(pod.last_error),
	];
}

/** `75s`, `12m`, `5h`, `3d`: two figures are enough. */
export function since(time: number, now: number): string {
	if (time === 0) {
		return '-';
	}

	const seconds = Math.max(0, Math.floor((now - time) / 1000));
	for (const [unit, length] of [
		['d', 86_400],
		['h', 3600],
		['m', 60],
	] as const) {
		if (seconds >= 2 * length) {
			return `${Math.floor(seconds / length)}${unit}`;
		}
	}

	return `${seconds}s`;
}

function firstLine(text: string): string {
	const [line = ''] = text.split('\n');
	return line.length <= longestError ? line : `${line.slice(0, longestError - 1)}…`;
}
