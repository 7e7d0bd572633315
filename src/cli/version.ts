/** `cloud-api-adaptor version`: the build, and the versions of its contracts with other programs. */
import {apiVersion} from '../api/contract.ts';
import {contractVersion} from '../relay-process/contract.ts';

/** The parts of package.json that describe a build. */
export interface Build {
	readonly version: string;
	/** The commit, as npm names it; the build of the image writes it. */
	readonly gitHead?: string;
}

/** The first line is stable: name and version. */
export function versionText({version, gitHead = 'unknown'}: Build, nodeVersion: string): string {
	return [
		`cloud-api-adaptor ${version}`,
		`commit ${gitHead}`,
		`Node.js ${nodeVersion}`,
		`kata remote hypervisor API ${apiVersion} (proto/hypervisor.proto)`,
		`relay process contract ${contractVersion} (proto/relay.proto)`,
		'',
	].join('\n');
}
